"""Thirty short Python tasks, each with the assertions that a right answer passes."""

TASKS: tuple[tuple[str, str], ...] = (
    ("is_even(n) that tells whether a number is even", "assert is_even(4) and is_even(0) and not is_even(7)"),
    ("reverse_string(s) that reverses a string", "assert reverse_string('abc') == 'cba' and reverse_string('') == ''"),
    ("factorial(n) that returns the factorial of n", "assert factorial(0) == 1 and factorial(5) == 120"),
    ("add(a, b) that returns the sum of two numbers", "assert add(2, 3) == 5 and add(-1, 1) == 0"),
    ("maximum(numbers) that returns the largest number of a list", "assert maximum([3, 9, 2]) == 9"),
    (
        "is_palindrome(s) that tells whether a string is a palindrome",
        "assert is_palindrome('level') and not is_palindrome('ab')",
    ),
    (
        "count_vowels(s) that counts the vowels in a string",
        "assert count_vowels('hello') == 2 and count_vowels('xyz') == 0",
    ),
    (
        "fibonacci(n) that returns the n-th Fibonacci number, where fibonacci(0) is 0 and fibonacci(1) is 1",
        "assert [fibonacci(i) for i in range(7)] == [0, 1, 1, 2, 3, 5, 8]",
    ),
    (
        "is_prime(n) that tells whether a number is prime",
        "assert [n for n in range(20) if is_prime(n)] == [2, 3, 5, 7, 11, 13, 17, 19]",
    ),
    ("square(x) that returns the square of a number", "assert square(4) == 16 and square(-3) == 9"),
    ("average(numbers) that returns the mean of a list of numbers", "assert average([1, 2, 3]) == 2"),
    ("unique(items) that returns a list without duplicates, in order", "assert unique([1, 2, 1, 3, 2]) == [1, 2, 3]"),
    ("flatten(lists) that flattens a list of lists into one list", "assert flatten([[1, 2], [3], []]) == [1, 2, 3]"),
    ("word_count(s) that returns how many words a string has", "assert word_count('one two  three') == 3"),
    (
        "to_celsius(f) that converts Fahrenheit to Celsius",
        "assert abs(to_celsius(212) - 100) < 1e-6 and abs(to_celsius(32)) < 1e-6",
    ),
    ("gcd(a, b) that returns the greatest common divisor of two numbers", "assert gcd(12, 18) == 6 and gcd(7, 5) == 1"),
    ("sum_of_digits(n) that returns the sum of the digits of a number", "assert sum_of_digits(1234) == 10"),
    ("last(items) that returns the last element of a list", "assert last([1, 2, 3]) == 3"),
    (
        "capitalize_words(s) that makes the first letter of each word upper case",
        "assert capitalize_words('hello big world') == 'Hello Big World'",
    ),
    ("remove_spaces(s) that removes all spaces from a string", "assert remove_spaces(' a b c ') == 'abc'"),
    ("only_even(numbers) that returns the even numbers of a list", "assert only_even([1, 2, 3, 4]) == [2, 4]"),
    (
        "is_leap_year(year) that tells whether a year is a leap year",
        "assert is_leap_year(2000) and is_leap_year(2024) and not is_leap_year(1900)",
    ),
    (
        "power(base, exponent) that returns base to the power of exponent",
        "assert power(2, 10) == 1024 and power(5, 0) == 1",
    ),
    ("count_char(s, c) that counts how often a character is in a string", "assert count_char('banana', 'a') == 3"),
    ("absolute(x) that returns the absolute value of a number", "assert absolute(-5) == 5 and absolute(3) == 3"),
    (
        "sort_descending(numbers) that returns a list sorted from largest to smallest",
        "assert sort_descending([2, 5, 1]) == [5, 2, 1]",
    ),
    (
        "merge(a, b) that merges two dictionaries, where the second one wins",
        "assert merge({'x': 1, 'y': 2}, {'y': 3}) == {'x': 1, 'y': 3}",
    ),
    (
        "celsius_list(values) that converts a list of Celsius values to Fahrenheit",
        "assert celsius_list([0, 100]) == [32, 212]",
    ),
    ("longest(words) that returns the longest word of a list", "assert longest(['a', 'abc', 'ab']) == 'abc'"),
    ("area_of_circle(r) that returns the area of a circle", "assert abs(area_of_circle(1) - 3.14159) < 0.01"),
)
"""(what the function is to be, assertions)."""
