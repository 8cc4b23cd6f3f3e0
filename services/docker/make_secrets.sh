#!/bin/sh
# Make the passwords of a compose stack, once: random, in a volume that only its containers mount.
set -eu
cd "$1"
for name in admin-token redis-password; do
  if [ ! -e "$name" ]; then
    head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$name.new"
    chmod 0444 "$name.new" # everybody who mounts it is another user
    mv "$name.new" "$name"
    echo "made $1/$name"
  fi
done
