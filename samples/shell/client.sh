#!/usr/bin/env bash
# Asks a worker of mlbus with the nats command (0.5) and jq; NATS_URL says where.
set -euo pipefail
export LC_ALL=C
timeout=30 # seconds; the command's own is five

# req SUBJECT BODY OPTION…: the worker drops what nobody waits for any more. A body may hold {{, hence --no-templates.
req() {
  nats req "$1" "$2" --raw --no-templates --timeout "${timeout}s" -H "Ml-Timeout-Ms:${timeout}000" "${@:3}"
}

# The command ends with 0 on an error and on no reply, and with --raw prints no headers: the body says the same.
checked() {
  jq -n 'input | if .error then "\(.error.code) \(.error.message)\n" | halt_error else . end'
}

# generate BODY [PIECES]: prints the pieces of a text as they come, and how it ended. PIECES: cancel after so many.
generate() {
  local id pieces=0 finish='' frame
  id=$(od -An -N16 -tx1 /dev/urandom | tr -d ' ')
  while read -r frame; do
    case $frame in
      '' | 'nil body') ;; # how the command shows the empty message that is the end
      '{"error"'*) checked <<<"$frame" ;;
      *'"finish_reason":'*) finish=$(jq -r .finish_reason <<<"$frame") ;;
      *)
        jq -j .text <<<"$frame"
        # Here leaving would do, for it closes the connection. Where many streams share one, the worker hears nothing.
        ((++pieces != ${2-0})) || nats pub --quiet "ml.cancel.$id" ''
        ;;
    esac
  done < <(req ml.generate "$1" --wait-for-empty --reply-timeout "${timeout}s" -H Ml-Stream:true -H "Ml-Request-Id:$id")
  [[ $finish ]] || { echo 'cut off: the stream ended without `done` and without an error' >&2; return 1; }
  printf '\nfinish: %s\n' "$finish"
}

reply=$(req ml.embed '{"text": "def hello(): pass"}' | checked)
mapfile -t values < <(jq -r '.model, .dimensions, .embedding[:3][]' <<<"$reply")
printf 'embed: %s, %d dimensions, %.4f %.4f %.4f\n' "${values[@]}"

body='{"query": "read a file", "candidates": ["a + b", "open(path).read()", "requests.get(url)"]}'
reply=$(req ml.similarity "$body" | checked)
jq -r '.results[] | "\(.index) \(.score)"' <<<"$reply" | xargs printf 'rank: %d %.2f\n'

printf 'stream: '
generate '{"prompt": "def fib(n):", "max_tokens": 48, "temperature": 0}'

reply=$(req ml.embed '{"text": "def hello(): pass", "lang": "python"}' | checked 2>&1) || echo "error: $reply"

printf 'cancel: '
generate '{"prompt": "def fib(n):", "max_tokens": 1000, "min_tokens": 1000}' 3

# Nobody knows how many workers there are: until none has answered for a while.
pongs=$(nats req '$SRV.PING.ml' '' --raw --replies 0 --timeout 1s | jq -s -r 'length, .[].metadata.models')
echo workers: $pongs
