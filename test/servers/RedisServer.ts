/**
 * A private redis-server on a free port of 127.0.0.1, in a folder of its own.
 *
 * It lives as long as its scope, and dies with the process that started it,
 * however that ends: a shell watches over it whose input is that process.
 *
 * Waiting here is on the real clock, whatever clock the test has.
 */
import { spawnSync } from "node:child_process"
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import { Redis } from "ioredis"
import type { Certificates } from "./certificates.ts"
import { ensureInstalled, ServerProcess } from "./ServerProcess.ts"

export { waitUntil } from "./ServerProcess.ts"

export interface RedisServer {
  readonly port: number
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
  /** One command, on a connection of its own. */
  readonly command: (...args: ReadonlyArray<string>) => Effect.Effect<unknown>
}

export interface Options {
  /** Default `true`, with `appendfsync` as below. */
  readonly appendOnly?: boolean | undefined
  /** Default `everysec`. */
  readonly fsync?: "always" | "everysec" | undefined
  /** TLS only, with this certificate; clients need none. */
  readonly tls?: Certificates | undefined
  /** The text of a configuration file, which the server may rewrite. Arguments win over it. */
  readonly config?: string | undefined
  /** More arguments of redis-server. */
  readonly args?: ReadonlyArray<string> | undefined
}

const binary = "redis-server"
const find = () => (spawnSync(binary, ["--version"]).status === 0 ? binary : undefined)

/**
 * A port nobody listens on. Below those the system gives to outgoing connections:
 * these would take the port of a server that is down, and a client that
 * reconnects to such a port ends up talking to itself.
 */
export const freePort = async (): Promise<number> => {
  for (;;) {
    const port = 12_000 + Math.floor(Math.random() * 10_000)
    const isFree = await new Promise<boolean>((resolve) => {
      const server = createServer()
      server.once("error", () => resolve(false))
      server.listen(port, "127.0.0.1", () => server.close(() => resolve(true)))
    })
    if (isFree) return port
  }
}

/**
 * Says its server's pid and waits for it. When its input ends, which is the process
 * that started it, it kills the server and removes its folder.
 */
const watch = `
exec 3<&0
"$@" >>"$FOLDER/log" 2>&1 3<&- & server=$!
(cat >/dev/null; trap '' TERM; kill -9 $server; rm -rf "$FOLDER") <&3 & watcher=$!
echo $server
wait $server
kill $watcher`

export const make = (options: Options = {}): Effect.Effect<RedisServer, never, Scope.Scope> =>
  Effect.gen(function* () {
    yield* Effect.sync(() => ensureInstalled(binary, "redis", find))
    const { tls } = options
    const folder = yield* Effect.acquireRelease(
      Effect.sync(() => mkdtempSync(join(tmpdir(), "cohort-redis-"))),
      (folder) => Effect.sync(() => rmSync(folder, { recursive: true, force: true }))
    )
    const log = () => (existsSync(join(folder, "log")) ? readFileSync(join(folder, "log"), "utf8") : "")
    const config = join(folder, "redis.conf")
    if (options.config !== undefined) writeFileSync(config, options.config)

    let port = 0
    const server = new ServerProcess()

    const command = (args: ReadonlyArray<string>): Promise<unknown> => {
      const client = new Redis({
        host: "127.0.0.1",
        port,
        lazyConnect: true,
        enableReadyCheck: false,
        connectTimeout: 5_000,
        commandTimeout: 10_000,
        retryStrategy: () => null,
        ...(tls === undefined ? {} : { tls: { ca: readFileSync(tls.ca) } })
      })
      client.on("error", () => undefined)
      return client.call(args[0]!, ...args.slice(1)).finally(() => client.disconnect())
    }

    /** Whether this server answers, and not another one that was faster to take the port. */
    const answers = () =>
      command(["INFO"]).then(
        (info) => String(info).includes(`process_id:${server.pid}\r\n`) && !String(info).includes("loading:1"),
        // It wants a password, perhaps.
        (error) => error instanceof Error && /^(NOAUTH|NOPERM)/.test(error.message)
      )

    const launch = async (): Promise<void> => {
      const args = options.config === undefined ? [] : [config]
      args.push("--bind", "127.0.0.1", "--dir", folder, "--save", "", "--logfile", join(folder, "log"))
      args.push("--appendonly", options.appendOnly === false ? "no" : "yes")
      args.push("--appendfsync", options.fsync ?? "everysec")
      args.push("--daemonize", "no", "--enable-debug-command", "yes")
      if (tls === undefined) args.push("--port", String(port))
      else {
        args.push("--port", "0", "--tls-port", String(port), "--tls-auth-clients", "no")
        args.push("--tls-cert-file", tls.cert, "--tls-key-file", tls.key, "--tls-ca-cert-file", tls.ca)
      }
      await server.launch(
        {
          script: watch,
          args: [binary, ...args, ...(options.args ?? [])],
          env: { ...process.env, FOLDER: folder }
        },
        answers,
        () => `redis-server does not start:\n${log().slice(-2_000)}`
      )
    }

    yield* Effect.acquireRelease(
      Effect.promise(async () => {
        for (let attempt = 1; ; attempt++) {
          port = await freePort()
          const before = log().length
          try {
            return await launch()
          } catch (error) {
            // Someone may have taken the port since it was free.
            if (attempt === 10 || !/already in use|Failed listening/i.test(log().slice(before))) throw error
          }
        }
      }),
      () => Effect.promise(() => server.end("SIGKILL"))
    )

    return {
      port,
      url: `${tls === undefined ? "redis" : "rediss"}://127.0.0.1:${port}`,
      folder,
      pid: () => server.pid,
      kill: Effect.promise(() => server.end("SIGKILL")),
      stop: Effect.promise(() => server.end("SIGTERM")),
      start: Effect.promise(async () => {
        if (!server.isUp()) await launch()
      }),
      freeze: Effect.sync(() => server.signal("SIGSTOP")),
      thaw: Effect.sync(() => server.signal("SIGCONT")),
      command: (...args) => Effect.promise(() => command(args))
    }
  })

let shared: Promise<string> | undefined

/**
 * `REDIS_URL`, or a server that the tests of this process share; it dies with the
 * process. For tests that leave the server and the names of others alone.
 */
export const sharedUrl: Effect.Effect<string> = Effect.promise(() => {
  const { REDIS_URL } = process.env
  if (REDIS_URL !== undefined && REDIS_URL !== "") return Promise.resolve(REDIS_URL)
  shared ??= Effect.runPromise(
    // A scope that nobody closes: the shell ends the server with this process.
    Effect.gen(function* () {
      const server = yield* Scope.provide(make(), yield* Scope.make())
      return server.url
    })
  )
  return shared
})
