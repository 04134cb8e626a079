#!/bin/sh
# Makes this Debian host a worker of an existing Berth, as a systemd service. Idempotent: run it again after an update.
#
#   sudo BERTH_API_URL=tls://10.0.0.1:7071 BERTH_JOIN_TOKEN=jtk_… BERTH_HOST_ADDRESS=10.0.0.2 infra/install-worker.sh
#
# Run it from a clone that stays where it is. Settings (docs/hosts.md) go to /etc/berth/worker.env (root only); a setting
# that is not given keeps its value there. The join token is needed once, and not kept when it has served.
set -eu

clone=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
settings=/etc/berth/worker.env

fail() {
  echo "install-worker: $1" >&2
  exit 1
}

setting() {
  sed -n "s/^$1=//p" "$settings"
}

# Writes the settings without one of them, and with what is on stdin.
replace() {
  { grep -v "^$1=" "$settings" || true; cat; } >"$settings.new"
  chmod 0600 "$settings.new"
  mv "$settings.new" "$settings"
}

[ "$(id -u)" = 0 ] || fail "this needs root: sudo $0"
command -v apt-get >/dev/null || fail "this needs Debian's apt-get"

install -d -m 0700 /etc/berth
[ -e "$settings" ] || install -m 0600 /dev/null "$settings"
env | grep '^BERTH_' | while IFS='=' read -r name value; do
  printf '%s=%s\n' "$name" "$value" | replace "$name"
done

data=$(setting BERTH_DATA_DIR)
identity=${data:-/var/lib/berth}/worker/host.json
# A worker that holds the secret key, on the API's machine, has no need to join.
if [ -n "$(setting BERTH_SECRET_KEY)" ]; then
  [ -n "$(setting BERTH_DATABASE_URL)" ] || fail "BERTH_DATABASE_URL is needed: where this Berth's database is"
else
  [ -n "$(setting BERTH_API_URL)" ] || fail "BERTH_API_URL is needed: the API's internal listener, tls://ADDRESS:PORT"
  [ -n "$(setting BERTH_HOST_ADDRESS)" ] || fail "BERTH_HOST_ADDRESS is needed: where clients and the API reach this host"
  [ -e "$identity" ] || [ -n "$(setting BERTH_JOIN_TOKEN)" ] ||
    fail "BERTH_JOIN_TOKEN is needed to join: POST /v1/join-tokens gives one"
fi

packages=$(awk '$1 == "run" { print $2 }' "$clone/infra/packages.txt")
# npm is only needed for `npm ci`, and Node only until the pinned one is there.
command -v npm >/dev/null || packages="$packages npm"
missing=
for package in $packages; do
  dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
done
if [ -n "$missing" ]; then
  echo "installing$missing"
  apt-get -qq update
  # shellcheck disable=SC2086 # a list of words
  DEBIAN_FRONTEND=noninteractive apt-get -qqy install --no-install-recommends $missing >/dev/null
fi

(cd "$clone" && node infra/bootstrap.mjs setup)

sed "s|/opt/berth|$clone|g" "$clone/infra/systemd/berth-worker.service" >/etc/systemd/system/berth-worker.service
if [ ! -d /run/systemd/system ]; then
  echo "berth-worker is installed; systemd does not run here, so it is not started"
  exit 0
fi
systemctl daemon-reload
systemctl enable --quiet berth-worker.service
systemctl restart berth-worker.service
if [ -z "$(setting BERTH_SECRET_KEY)" ]; then
  for _ in $(seq 60); do
    [ -e "$identity" ] && break
    sleep 0.5
  done
  [ -e "$identity" ] || fail "the host has not joined; journalctl -u berth-worker says why"
  replace BERTH_JOIN_TOKEN </dev/null
fi
echo "berth-worker runs; systemctl status berth-worker"
