#!/bin/sh
# RabbitMQ 4 with its Erlang in a folder of its own, beside whatever is installed: Debian 13's packages, unpacked, on a
# Debian or Ubuntu of x86-64 that is older. What runs with the folder's `bin` first on its PATH has that broker:
#
#   scripts/rabbitmq-4.sh /opt/rabbitmq-4
#   PATH=/opt/rabbitmq-4/bin:$PATH npx vitest run test/layers/amqp-queue.test.ts
#
# Wants root once if there is no patchelf. Nothing is configured or started; delete the folder, and it is gone.
set -eu
folder=${1:?the folder to put it into}
mirror=${2:-http://deb.debian.org/debian}
command -v patchelf >/dev/null || apt-get install -y --no-install-recommends patchelf

mkdir -p "$folder/apt/lists/partial" "$folder/apt/cache" "$folder/apt/none"
folder=$(cd "$folder" && pwd)
cd "$folder/apt/cache"
: >../status
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main" >../sources
cat >../conf <<END
Dir::Etc::sourcelist "$folder/apt/sources";
Dir::Etc::sourceparts "$folder/apt/none";
Dir::Etc::preferencesparts "$folder/apt/none";
Dir::State::lists "$folder/apt/lists";
Dir::State::status "$folder/apt/status";
Dir::Cache "$folder/apt/cache";
APT::Architecture "amd64";
APT::Sandbox::User "";
Acquire::Languages "none";
END
export APT_CONFIG="$folder/apt/conf"
apt-get update
apt-get download rabbitmq-server libc6 libcap2 libgcc-s1 liblzma5 libssl3t64 libstdc++6 libsystemd0 libtinfo6 libzstd1 zlib1g \
  erlang-asn1 erlang-base erlang-crypto erlang-eldap erlang-inets erlang-mnesia erlang-os-mon erlang-parsetools \
  erlang-public-key erlang-runtime-tools erlang-ssl erlang-syntax-tools erlang-tools erlang-xmerl
for package in *.deb; do dpkg -x "$package" "$folder"; done

# Its programs take their libraries from here, and its scripts find their programs here.
lib="$folder/usr/lib"
libraries="$lib/x86_64-linux-gnu"
find "$lib/erlang" -type f -perm -u+x -exec sh -c '
  for file; do
    ! patchelf --print-interpreter "$file" >/dev/null 2>&1 ||
      patchelf --set-interpreter "$0/ld-linux-x86-64.so.2" --force-rpath --set-rpath "$0" "$file"
  done' "$libraries" {} +
sed -i "s|ROOTDIR=/usr/lib/erlang|ROOTDIR=$lib/erlang|" "$lib"/erlang/bin/erl "$lib"/erlang/erts-*/bin/erl
mkdir -p "$folder/bin"
for program in epmd erl escript; do ln -sf "$lib/erlang/bin/$program" "$folder/bin/"; done
for program in "$lib"/rabbitmq/lib/rabbitmq_server-*/sbin/*; do ln -sf "$program" "$folder/bin/"; done
cd "$folder"
rm -r apt
PATH="$folder/bin:$PATH" erl -noshell -eval 'io:format("Erlang ~s, ", [erlang:system_info(otp_release)]), halt().'
basename "$lib"/rabbitmq/lib/rabbitmq_server-*
