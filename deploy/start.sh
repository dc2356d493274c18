#!/usr/bin/env bash
# A team's tracking server without Docker: PostgreSQL and an MLflow server that proxies artifacts.
#
#   apt-get install postgresql; pip install -e '.[server]'; bash deploy/start.sh
#
# Runs until it is stopped (Ctrl-C, SIGTERM) and needs no root; as root, PostgreSQL runs as the user
# postgres. Settings come from the environment or from deploy/.env, see .env.example.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
# Each setting from the environment if it is there, else from the file.
given=$(export -p)
if [ -f "$here/.env" ]; then set -a; . "$here/.env"; set +a; fi
eval "$given"
state=${SEMIDAVIL_SERVER_DIR:-$here/state}
port=${MLFLOW_PORT:-5000} postgres_port=${POSTGRES_PORT:-5433}

binaries=(/usr/lib/postgresql/*/bin/postgres)
bin=$(dirname "${binaries[-1]}")
[ -x "$bin/postgres" ] || { echo "no PostgreSQL here: apt-get install postgresql" >&2; exit 1; }
command -v mlflow >/dev/null || { echo "no mlflow here: pip install -e '.[server]'" >&2; exit 1; }
as_postgres=()
if [ "$(id -u)" = 0 ]; then as_postgres=(runuser -u postgres --); fi

mkdir -p "$state/artifacts" "$state/postgres"
cd "$state"
if [ ! -f postgres/data/PG_VERSION ]; then
  (umask 077; printf %s "${POSTGRES_PASSWORD:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}" >password)
  install -m 600 password postgres/password
  if [ "$(id -u)" = 0 ]; then chown -R postgres postgres; fi
  "${as_postgres[@]}" "$bin/initdb" --pgdata="$state/postgres/data" --username=mlflow \
    --auth=scram-sha-256 --pwfile="$state/postgres/password" --encoding=UTF8 >initdb.log
  rm postgres/password
fi
"${as_postgres[@]}" "$bin/postgres" -D "$state/postgres/data" -p "$postgres_port" \
  -c listen_addresses=127.0.0.1 -c unix_socket_directories= >postgres.log 2>&1 &
postgres=$! mlflow=
stop() {
  trap - EXIT
  # The server first; then PostgreSQL itself, as runuser passes no signals on.
  if [ -n "$mlflow" ]; then kill "$mlflow" 2>/dev/null && wait "$mlflow" || true; fi
  if [ -f postgres/data/postmaster.pid ]; then kill -INT "$(head -1 postgres/data/postmaster.pid)"; fi
  wait "$postgres" || true
}
trap stop EXIT
trap 'exit 0' INT TERM
until "$bin/pg_isready" -q -h 127.0.0.1 -p "$postgres_port"; do
  kill -0 "$postgres" 2>/dev/null || { cat postgres.log >&2; exit 1; }
  sleep 0.2
done

# Not as an argument: those show up in process lists.
MLFLOW_BACKEND_STORE_URI="postgresql+psycopg2://mlflow:$(cat password)@127.0.0.1:$postgres_port/postgres"
MLFLOW_SERVER_ALLOWED_HOSTS=${MLFLOW_ALLOWED_HOSTS:-}
export MLFLOW_BACKEND_STORE_URI MLFLOW_SERVER_ALLOWED_HOSTS
export MLFLOW_DISABLE_TELEMETRY=${MLFLOW_DISABLE_TELEMETRY:-true}
mlflow server --host "${MLFLOW_BIND:-127.0.0.1}" --port "$port" --workers "${MLFLOW_WORKERS:-4}" \
  --serve-artifacts --artifacts-destination "$state/artifacts" &
mlflow=$!
echo "tracking server: http://${MLFLOW_BIND:-127.0.0.1}:$port    state: $state"
wait "$mlflow"
