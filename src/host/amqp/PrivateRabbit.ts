/**
 * A `rabbitmq-server` of the host's own, with an epmd of its own, so that it knows no
 * other node and no other node knows it. It takes some seconds to start.
 */
import { writeFileSync } from "node:fs"
import { join } from "node:path"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as PrivateServer from "../PrivateServer.ts"
import { describe, Refused } from "../Refused.ts"

/** Few threads, and none that spins while it has nothing to do; other nodes could only come from this machine. */
const erlang =
  "-noinput -start_epmd false -kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +SDio 2 +sbwt none +sbwtdcpu none +sbwtdio none"

export const start = PrivateServer.start({
  name: "rabbitmq-server",
  advice: "install it (apt-get install rabbitmq-server, brew install rabbitmq), or name a RabbitMQ in AMQP_URL",
  // Debian's on the PATH changes the user first, and so reads another configuration.
  script: `
command -v epmd >/dev/null && script=$(command -v rabbitmq-server) || exit 127
debian=/usr/lib/rabbitmq/bin/rabbitmq-server
case $script in */sbin/*) if [ -x $debian ]; then script=$debian; fi;; esac
epmd -address 127.0.0.1 -port "$ERL_EPMD_PORT" 3<&- & others=$!
"$script" 3<&- & server=$!`,
  configure: (directory, freePort) =>
    Effect.gen(function* () {
      const [port, distribution, epmd] = [yield* freePort, yield* freePort, yield* freePort]
      const password = SecureRandom.uuidV4Unsafe()
      const node = `cohort-${port}@localhost`
      const file = (name: string) => join(directory, name)
      const config = [
        `listeners.tcp.1 = 127.0.0.1:${port}`,
        `cluster_name = ${node}`,
        "default_user = cohort",
        `default_pass = ${password}`,
        "num_acceptors.tcp = 2",
        "disk_free_limit.absolute = 10MB",
        "log.console = true",
        "log.console.level = info",
        "log.file = false",
        ""
      ].join("\n")
      yield* Effect.try({
        try: () => {
          writeFileSync(file("rabbitmq.conf"), config)
          writeFileSync(file("plugins"), "[].")
        },
        catch: (error) => new Refused({ detail: `rabbitmq-server cannot be configured: ${describe(error)}` })
      })
      return {
        url: Redacted.make(`amqp://cohort:${password}@127.0.0.1:${port}`),
        env: {
          ERL_EPMD_ADDRESS: "127.0.0.1",
          ERL_EPMD_PORT: String(epmd),
          RABBITMQ_ALLOW_INPUT: "1", // so that the script becomes the broker
          RABBITMQ_CONFIG_FILE: file("rabbitmq.conf"),
          RABBITMQ_CONF_ENV_FILE: file("none"),
          RABBITMQ_DIST_PORT: String(distribution),
          RABBITMQ_ENABLED_PLUGINS_FILE: file("plugins"),
          RABBITMQ_FEATURE_FLAGS_FILE: file("flags"),
          RABBITMQ_GENERATED_CONFIG_DIR: file("generated"),
          RABBITMQ_LOG_BASE: file("logs"),
          RABBITMQ_LOGS: "-",
          RABBITMQ_MNESIA_BASE: file("data"),
          RABBITMQ_NODENAME: node,
          RABBITMQ_PID_FILE: file("pid"),
          RABBITMQ_SCHEMA_DIR: file("schema"),
          RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS: erlang
        }
      }
    }),
  ready: "Server startup complete",
  problem: /\[error\].*[a-z]{3}|BOOT FAILED|eaddrinuse|already in use|cannot|can't/i,
  startWithin: "60 seconds"
})
