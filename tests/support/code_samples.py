"""A small source in each language that a grammar is there for: the same things in all of them."""

SOURCES = {
    "python": '''
        # Copyright (c) 2020 Somebody.
        import os

        @cached
        async def add(a: int, b: int) -> int:
            """Add two numbers.

                Both are whole.
            """
            def twice(x):
                """Not a symbol of its own."""
                return x * 2
            return twice(a) + os.path.join(b)

        class Stack(list):
            """A pile of things."""

            limit: int = 3

            def push(self, item):
                """Put one more on it."""
                self.append(item)

            class Full(Exception):
                """No room."""

        def test_add():
            first = 1
            assert add(first, 2) == 3
    ''',
    "javascript": """
        /**
         * Add two numbers.
         * @param {number} a - the first
         */
        export function add(a, b) {
          function twice(x) { return x * 2; }
          return twice(a) + Math.max(b);
        }

        /** A pile of things. */
        class Stack extends Array {
          /** Put one more on it. */
          push(item) {
            this.append(new Item(item));
          }
        }

        /** Says hello. */
        const hello = async (name) => greet(name);

        describe("add", () => {
          it("adds", () => {
            expect(add(1, 2)).toBe(3);
          });
        });
    """,
    "go": """
        // Package pile has a copyright of nobody.
        package pile

        // add adds two numbers.
        //
        //go:noinline
        func add(a int, b int) int {
            twice := func(x int) int { return x * 2 }
            return twice(a) + math.max(b)
        }

        // Stack is a pile of things.
        type Stack struct {
            items []int
        }

        // push puts one more on it.
        func (s *Stack) push(item int) {
            s.append(item)
        }
    """,
    "rust": """
        /// Add two numbers.
        /// Both are whole.
        #[inline]
        pub fn add(a: u8, b: u8) -> u8 {
            fn twice(x: u8) -> u8 { x * 2 }
            twice(a) + math::max(b)
        }

        /** A pile of things. */
        pub struct Stack<T> { items: Vec<T> }

        impl<T> Stack<T> {
            /// Put one more on it.
            fn push(&mut self, item: T) {
                self.append(item);
            }
        }

        #[cfg(test)]
        mod tests {
            #[test]
            fn adds() {
                assert_eq!(add(1, 2), 3);
            }
        }
    """,
    "java": """
        /**
         * A pile of things, see {@link Pile}.<p>
         */
        @Deprecated
        public class Stack extends Pile {
            /** Add two numbers. */
            static int add(int a, int b) {
                return Math.max(twice(a), b);
            }

            /** Put one more on it. */
            public void push(Item item) {
                this.append(new Item(item));
            }

            @Test
            void adds() {
                assertEquals(3, add(1, 2));
            }
        }
    """,
    "c": """
        /* Copyright (c) 2020 Somebody. All rights reserved. */
        /* Add two numbers. */
        static int *add(int a, int b)
        {
            return twice(a) + math->max(b);
        }

        // A pile of things.
        typedef struct {
            int items[3];
        } Stack;

        #ifdef PILES
        /** Put one more on it. */
        void push(Stack *s, int item) {
            append(s, item);
        }
        #endif
    """,
    "cpp": """
        namespace pile {
        /// Add two numbers.
        template <class T>
        T add(T a, T b) {
            return twice<T>(a) + math::max(b);
        }

        /** A pile of things. */
        class Stack : public Pile {
         public:
            /** \\brief Put one more on it. */
            void push(int item) { this->append(item); }
            int pop();
        };
        }

        // Take one off.
        int pile::Stack::pop() { return drop(new Item(1)); }

        TEST(Stack, Pops) { EXPECT_EQ(pop(), 1); }
    """,
    "ruby": """
        # frozen_string_literal: true

        module Pile
          # A pile of things.
          class Stack < Array
            # Add two numbers.
            # rubocop:disable Metrics
            def self.add(a, b)
              twice(a) + Math.max(b)
            end

            # Put one more on it.
            def push(item)
              append(Item.new(item))
            end
          end
        end

        RSpec.describe Pile do
          it "adds" do
            expect(add(1, 2)).to eq(3)
          end
        end
    """,
    "elixir": '''
        defmodule Pile.Stack do
          @moduledoc """
          A pile of things.
          """

          @doc """
          Add two numbers.
          """
          @spec add(integer, integer) :: integer
          def add(a, b) when a > 0 do
            twice(a) + Kernel.max(b)
          end

          def add(_, b), do: b

          @doc "Put one more on it."
          def push(item), do: append(item)

          test "adds", %{pile: pile} do
            assert add(1, 2) == 3
          end
        end
    ''',
}
SOURCES["typescript"] = (
    SOURCES["javascript"].replace("(a, b)", "(a: number, b: number): number")
    + """
        /** What can be piled. */
        export interface Pile<T> { push(item: T): void }
    """
)
SOURCES["tsx"] = (
    SOURCES["typescript"] + "\n        /** Shows it. */\n        const Shown = () => <Row>{draw(1)}</Row>;\n"
)

# Of a function, a class, its method and a test; None where the language has no mark for one.
NAMES: dict[str, tuple[str, str, str, str | None]] = {
    "python": ("add", "Stack", "Stack.push", "test_add"),
    "javascript": ("add", "Stack", "Stack.push", "adds"),
    "typescript": ("add", "Stack", "Stack.push", "adds"),
    "tsx": ("add", "Stack", "Stack.push", "adds"),
    "go": ("add", "Stack", "Stack.push", None),
    "rust": ("add", "Stack", "Stack.push", "tests.adds"),
    "java": ("Stack.add", "Stack", "Stack.push", "Stack.adds"),
    "c": ("add", "Stack", "push", None),
    "cpp": ("pile.add", "pile.Stack", "pile.Stack.push", "Stack.Pops"),
    "ruby": ("Pile.Stack.add", "Pile.Stack", "Pile.Stack.push", "adds"),
    "elixir": ("Pile.Stack.add", "Pile.Stack", "Pile.Stack.push", "Pile.Stack.adds"),
}
