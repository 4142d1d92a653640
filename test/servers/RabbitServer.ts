/**
 * A private RabbitMQ broker on free ports of 127.0.0.1, in a folder of its own,
 * with an epmd of its own: it starts in about five seconds, and knows no other node.
 *
 * It lives as long as its scope, and dies with the process that started it,
 * however that ends: a shell watches over it whose input is that process.
 *
 * Waiting here is on the real clock, whatever clock the test has.
 */
import { execFile, spawnSync } from "node:child_process"
import { existsSync, mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { connect } from "amqplib"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import type { Certificates } from "./certificates.ts"
import { freePort } from "./RedisServer.ts"
import { ensureInstalled, ServerProcess } from "./ServerProcess.ts"

export interface RabbitServer {
  /** Its name as a node of a cluster. */
  readonly node: string
  readonly port: number
  /** Zero unless it has a certificate. */
  readonly tlsPort: number
  readonly url: string
  readonly folder: string
  /** Zero while it is down. */
  readonly pid: () => number
  /** SIGKILL; returns when it is dead. */
  readonly kill: Effect.Effect<void>
  /** SIGTERM; returns when it is dead. */
  readonly stop: Effect.Effect<void>
  /** Again, on the same port and data; returns when it answers. Nothing if it runs. */
  readonly start: Effect.Effect<void>
  /** SIGSTOP: connections stay open, nothing answers. */
  readonly freeze: Effect.Effect<void>
  /** SIGCONT. */
  readonly thaw: Effect.Effect<void>
  /** Runs rabbitmqctl, and gives what it says. */
  readonly control: (...args: ReadonlyArray<string>) => Effect.Effect<string>
}

export interface Options {
  /** Serves TLS as well, with this certificate; clients need none. */
  readonly tls?: Certificates | undefined
  /** More lines of rabbitmq.conf. */
  readonly config?: string | undefined
  /** More of its environment. */
  readonly env?: Readonly<Record<string, string>> | undefined
  /** What it has in common with the other nodes of its cluster; see `RabbitCluster.ts`. */
  readonly cluster?: Cluster | undefined
}

interface Cluster {
  /** The port of an epmd that lives longer than the node. */
  readonly epmd: number
  readonly cookie: string
  /** A node that runs, to join when it starts for the first time. */
  readonly seed?: string | undefined
}

/**
 * Where the scripts are: on the PATH, so that whoever runs the tests chooses the broker. Debian's there change the user
 * first; it has others that run as whoever calls them.
 */
const scripts = (): string | undefined => {
  const { status, stdout } = spawnSync("sh", ["-c", "command -v rabbitmq-server"], { encoding: "utf8" })
  const debian = "/usr/lib/rabbitmq/bin"
  if (status !== 0) return undefined
  const found = dirname(stdout.trim())
  return found.endsWith("/sbin") && existsSync(`${debian}/rabbitmq-server`) ? debian : found
}

/**
 * RabbitMQ 4 has features that it still permits, and later ones will not: here it permits none. In a cluster 4.0.5 does not
 * start a second time without transient queues, whether there are any or not.
 */
const refusals = (bin: string, isNode: boolean): ReadonlyArray<string> => {
  const [, major] = /rabbitmq_server-(\d+)\./.exec(realpathSync(join(bin, "rabbitmq-server"))) ?? []
  if (Number(major ?? 0) < 4) return []
  const features = ["global_qos", "queue_master_locator", "ram_node_type"]
  if (!isNode) features.push("transient_nonexcl_queues")
  return features.map((feature) => `deprecated_features.permit.${feature} = false`)
}

/**
 * Starts epmd, unless there is one, and the broker, says the broker's pid and waits for it. When its input ends, which is the process
 * that started it, it kills both and removes their folder.
 */
const watch = `
exec 3<&0 </dev/null
epmd=
[ "$OTHERS_EPMD" ] || { epmd -address 127.0.0.1 -port "$ERL_EPMD_PORT" >>"$HOME/log" 2>&1 3<&- & epmd=$!; }
"$@" >>"$HOME/log" 2>&1 3<&- & server=$!
(cat >/dev/null; trap '' TERM; kill -9 $server $epmd; sleep 0.2; rm -rf "$HOME") <&3 & watcher=$!
echo $server
wait $server
kill -9 $epmd
kill $watcher`

/** Little memory, few threads, no plugin, and no thread that spins while it has nothing to do. */
const erlang =
  "-noinput -start_epmd false -kernel inet_dist_use_interface {127,0,0,1} +S 2:2 +SDio 2 +sbwt none +sbwtdcpu none +sbwtdio none"

export const make = (options: Options = {}): Effect.Effect<RabbitServer, never, Scope.Scope> =>
  Effect.gen(function* () {
    const bin = yield* Effect.sync(() => ensureInstalled("rabbitmq-server", "rabbitmq", scripts))
    const { cluster, tls } = options
    const folder = yield* Effect.acquireRelease(
      Effect.sync(() => mkdtempSync(join(tmpdir(), "cohort-rabbit-"))),
      (folder) => Effect.sync(() => rmSync(folder, { recursive: true, force: true, maxRetries: 5 }))
    )
    const log = () => (existsSync(join(folder, "log")) ? readFileSync(join(folder, "log"), "utf8") : "")

    let ports = { amqp: 0, tls: 0, distribution: 0, epmd: 0 }
    const server = new ServerProcess()
    const node = () => `cohort-${ports.amqp}@localhost`
    const clusterName = () => cluster?.seed ?? node()

    const environment = () => ({
      PATH: process.env.PATH,
      LANG: "C.UTF-8",
      HOME: folder,
      ERL_CRASH_DUMP: join(folder, "erl_crash.dump"),
      ERL_EPMD_PORT: String(ports.epmd),
      ERL_EPMD_ADDRESS: "127.0.0.1",
      OTHERS_EPMD: cluster && "yes",
      RABBITMQ_ALLOW_INPUT: "1", // so that the script becomes the broker
      RABBITMQ_CONFIG_FILE: join(folder, "rabbitmq.conf"),
      RABBITMQ_CONF_ENV_FILE: join(folder, "none"),
      RABBITMQ_DIST_PORT: String(ports.distribution),
      RABBITMQ_ENABLED_PLUGINS_FILE: join(folder, "plugins"),
      RABBITMQ_FEATURE_FLAGS_FILE: join(folder, "flags"),
      RABBITMQ_GENERATED_CONFIG_DIR: join(folder, "generated"),
      RABBITMQ_LOG_BASE: join(folder, "logs"),
      RABBITMQ_LOGS: "-",
      RABBITMQ_MNESIA_BASE: join(folder, "data"),
      RABBITMQ_NODENAME: node(),
      RABBITMQ_PID_FILE: join(folder, "pid"),
      RABBITMQ_SCHEMA_DIR: join(folder, "schema"),
      RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS: erlang,
      ...options.env
    })

    const configure = () => {
      writeFileSync(join(folder, "plugins"), "[].")
      if (cluster !== undefined) writeFileSync(join(folder, ".erlang.cookie"), cluster.cookie, { mode: 0o400 })
      writeFileSync(
        join(folder, "rabbitmq.conf"),
        [
          `listeners.tcp.1 = 127.0.0.1:${ports.amqp}`,
          `cluster_name = ${clusterName()}`,
          "num_acceptors.tcp = 2",
          "disk_free_limit.absolute = 10MB",
          "log.console = true",
          "log.console.level = warning",
          "log.file = false",
          ...refusals(bin, cluster !== undefined),
          ...(cluster?.seed === undefined
            ? []
            : [
                "cluster_formation.peer_discovery_backend = classic_config",
                `cluster_formation.classic_config.nodes.1 = ${cluster.seed}`,
                `cluster_formation.classic_config.nodes.2 = ${node()}`
              ]),
          ...(tls === undefined
            ? []
            : [
                `listeners.ssl.1 = 127.0.0.1:${ports.tls}`,
                `ssl_options.cacertfile = ${tls.ca}`,
                `ssl_options.certfile = ${tls.cert}`,
                `ssl_options.keyfile = ${tls.key}`,
                "ssl_options.verify = verify_none"
              ]),
          options.config ?? "",
          ""
        ].join("\n")
      )
    }

    /** Whether this broker answers, and not another one that was faster to take the port. */
    const answers = async () => {
      try {
        const connection = await connect(`amqp://127.0.0.1:${ports.amqp}`, { timeout: 2_000, noDelay: true })
        connection.on("error", () => undefined)
        const { cluster_name } = connection.connection.serverProperties
        await connection.close()
        return cluster_name === clusterName()
      } catch (error) {
        // One without its default user.
        return error instanceof Error && error.message.includes("ACCESS_REFUSED")
      }
    }

    const launch = () =>
      server.launch(
        { script: watch, args: [join(bin, "rabbitmq-server")], env: environment() },
        answers,
        () => `rabbitmq-server does not start:\n${log().slice(-2_000)}`,
        60_000
      )

    yield* Effect.acquireRelease(
      Effect.promise(async () => {
        for (let attempt = 1; ; attempt++) {
          ports = {
            amqp: await freePort(),
            tls: tls === undefined ? 0 : await freePort(),
            distribution: await freePort(),
            epmd: cluster?.epmd ?? (await freePort())
          }
          configure()
          const before = log().length
          try {
            return await launch()
          } catch (error) {
            // Someone may have taken a port since it was free.
            if (attempt === 5 || !/eaddrinuse|already in use/i.test(log().slice(before))) throw error
          }
        }
      }),
      () => Effect.promise(() => server.end("SIGKILL"))
    )

    return {
      node: node(),
      port: ports.amqp,
      tlsPort: ports.tls,
      url: `amqp://127.0.0.1:${ports.amqp}`,
      folder,
      pid: () => server.pid,
      kill: Effect.promise(() => server.end("SIGKILL")),
      stop: Effect.promise(() => server.end("SIGTERM")),
      start: Effect.promise(async () => {
        if (!server.isUp()) await launch()
      }),
      freeze: Effect.sync(() => server.signal("SIGSTOP")),
      thaw: Effect.sync(() => server.signal("SIGCONT")),
      control: (...args) =>
        Effect.promise(
          () =>
            new Promise<string>((resolve, reject) => {
              execFile(
                join(bin, "rabbitmqctl"),
                ["--node", node(), "--silent", ...args],
                { env: environment() },
                (error, stdout, stderr) => (error === null ? resolve(stdout) : reject(new Error(`${stdout}${stderr}`)))
              )
            })
        )
    }
  })

let shared: Promise<string> | undefined

/**
 * `AMQP_URL`, or a broker that the tests of this process share; it dies with the
 * process. For tests that leave the broker and the names of others alone.
 */
export const sharedUrl: Effect.Effect<string> = Effect.promise(() => {
  const { AMQP_URL } = process.env
  if (AMQP_URL !== undefined && AMQP_URL !== "") return Promise.resolve(AMQP_URL)
  shared ??= Effect.runPromise(
    // A scope that nobody closes: the shell ends the broker with this process.
    Effect.gen(function* () {
      const server = yield* Scope.provide(make(), yield* Scope.make())
      return server.url
    })
  )
  return shared
})
