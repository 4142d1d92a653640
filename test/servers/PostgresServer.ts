/**
 * A private PostgreSQL on a free port of 127.0.0.1, in a folder of its own. It trusts whoever connects, as
 * `postgres`, and does not wait for the disk: what is committed outlives its processes, not the machine.
 *
 * It lives as long as its scope, and dies with the process that started it, however that ends.
 */
import { execFile, spawnSync } from "node:child_process"
import { chownSync, existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join } from "node:path"
import { promisify } from "node:util"
import { PgClient } from "@effect/sql-pg"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import { SqlClient } from "effect/sql"
import { freePort } from "./RedisServer.ts"
import { ensureCommand, ensureInstalled, ServerProcess, waitUntil } from "./ServerProcess.ts"

export { waitUntil } from "./ServerProcess.ts"

export interface PostgresServer {
  readonly port: number
  readonly url: string
  readonly folder: string
  /** Zero while it is down. */
  readonly pid: () => number
  /** SIGKILL, to its sessions as well; returns when it is dead. */
  readonly kill: Effect.Effect<void>
  /** Ends its sessions and stops; returns when it is dead. */
  readonly stop: Effect.Effect<void>
  /** Again, on the same port and data; returns when it answers. Nothing if it runs. */
  readonly start: Effect.Effect<void>
  /** SIGSTOP, to its sessions as well: connections stay open, nothing answers. */
  readonly freeze: Effect.Effect<void>
  /** SIGCONT. */
  readonly thaw: Effect.Effect<void>
}

export interface Options {
  /** More settings, as in postgresql.conf. */
  readonly settings?: Readonly<Record<string, string>> | undefined
}

/** Where its programs are: Debian has them off the path, by version. */
const programs = (): string | undefined => {
  const debian = "/usr/lib/postgresql"
  if (existsSync(debian)) {
    const versions = readdirSync(debian).sort((a, b) => Number(b) - Number(a))
    const found = versions.map((version) => join(debian, version, "bin")).find((bin) => existsSync(join(bin, "initdb")))
    if (found !== undefined) return found
  }
  const { status, stdout } = spawnSync("sh", ["-c", "command -v initdb"], { encoding: "utf8" })
  return status === 0 ? dirname(stdout.trim()) : undefined
}

/** PostgreSQL refuses to run as root: it then runs as the user that its package made. */
const user = (): { readonly uid: number; readonly gid: number } | undefined => {
  if (process.getuid?.() !== 0) return undefined
  const id = (flag: string) => Number(spawnSync("id", [flag, "postgres"], { encoding: "utf8" }).stdout.trim() || "NaN")
  const found = { uid: id("-u"), gid: id("-g") }
  if (Number.isNaN(found.uid)) throw new Error("PostgreSQL does not run as root, and there is no user postgres")
  return found
}

/** Says its server's pid and waits for it. When its input ends, it ends the server at once and removes its folder. */
const watch = `
exec 3<&0
"$@" >>"$FOLDER/log" 2>&1 3<&- & server=$!
(cat >/dev/null; trap '' TERM; kill -CONT $server; kill -QUIT $server
n=0; while kill -0 $server && [ $n -lt 50 ]; do n=$((n + 1)); sleep 0.1; done
kill -9 $server; rm -rf "$FOLDER") <&3 & watcher=$!
echo $server
wait $server
kill $watcher`

export const make = (options: Options = {}): Effect.Effect<PostgresServer, never, Scope.Scope> =>
  Effect.gen(function* () {
    const bin = yield* Effect.sync(() => ensureInstalled("postgresql", "postgresql", programs))
    // pgrep, too.
    yield* Effect.sync(() => ensureCommand("ps", "procps"))
    const owner = user()
    const folder = yield* Effect.acquireRelease(
      Effect.sync(() => mkdtempSync(join(tmpdir(), "cohort-postgres-"))),
      (folder) => Effect.sync(() => rmSync(folder, { recursive: true, force: true, maxRetries: 5 }))
    )
    const data = join(folder, "data")
    const log = () => (existsSync(join(folder, "log")) ? readFileSync(join(folder, "log"), "utf8") : "")

    // Not in the way of others: it takes a second.
    yield* Effect.promise(async () => {
      if (owner !== undefined) chownSync(folder, owner.uid, owner.gid)
      const flags = ["-U", "postgres", "--auth=trust", "--no-sync", "--locale=C", "--encoding=UTF8"]
      await promisify(execFile)(join(bin, "initdb"), ["-D", data, ...flags], { ...owner, cwd: "/" })
    })

    let port = 0
    const server = new ServerProcess()

    const settings = () => ({
      port: String(port),
      listen_addresses: "127.0.0.1",
      unix_socket_directories: "",
      fsync: "off",
      shared_buffers: "32MB",
      ...options.settings
    })

    /** What the server writes of itself: its pid first, the key and id of its shared memory, its state last. */
    const status = (): ReadonlyArray<string> => {
      const file = join(data, "postmaster.pid")
      return existsSync(file) ? readFileSync(file, "utf8").split("\n") : []
    }

    const launch = () =>
      server.launch(
        {
          script: watch,
          args: [
            join(bin, "postgres"),
            "-D",
            data,
            ...Object.entries(settings()).flatMap(([name, value]) => ["-c", `${name}=${value}`])
          ],
          env: { PATH: process.env.PATH, LANG: "C", FOLDER: folder },
          ...owner
        },
        () => status()[0] === String(server.pid) && status()[7]?.trim() === "ready",
        () => `postgres does not start:\n${log().slice(-2_000)}`
      )

    const sessions = (): ReadonlyArray<number> =>
      spawnSync("pgrep", ["-P", String(server.pid)], { encoding: "utf8" })
        .stdout.split("\n")
        .filter(Boolean)
        .map(Number)

    const signalAll = (name: NodeJS.Signals, pids: ReadonlyArray<number>) => {
      for (const pid of pids) {
        try {
          process.kill(pid, name)
        } catch {
          // It has ended by itself.
        }
      }
    }

    const signal = (name: NodeJS.Signals) => {
      if (server.isUp()) signalAll(name, [server.pid, ...sessions()])
    }

    const kill = async () => {
      if (!server.isUp()) return
      // Frozen first, so that it starts no other session meanwhile.
      server.signal("SIGSTOP")
      const pids = sessions()
      await server.end("SIGKILL")
      signalAll("SIGKILL", pids)
      // A session that still holds the shared memory keeps the next server from starting.
      const living = () => {
        const { stdout } = spawnSync("ps", ["-o", "stat=", "-p", pids.join()], { encoding: "utf8" })
        return stdout.split("\n").some((state) => /^[^Z]/.test(state.trim()))
      }
      await waitUntil(
        () => pids.length === 0 || !living(),
        () => "sessions of a killed PostgreSQL live on"
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
            if (attempt === 10 || !/already in use/i.test(log().slice(before))) throw error
          }
        }
      }),
      () =>
        Effect.promise(async () => {
          signal("SIGCONT")
          await server.end("SIGQUIT")
          // What a killed one left in the system.
          const id = status()[6]?.trim().split(/\s+/)[1]
          if (id !== undefined) spawnSync("ipcrm", ["-m", id])
        })
    )

    return {
      port,
      url: `postgres://postgres@127.0.0.1:${port}/postgres`,
      folder,
      pid: () => server.pid,
      kill: Effect.promise(kill),
      stop: Effect.promise(async () => {
        signal("SIGCONT")
        await server.end("SIGINT")
      }),
      start: Effect.promise(async () => {
        if (!server.isUp()) await launch()
      }),
      freeze: Effect.sync(() => signal("SIGSTOP")),
      thaw: Effect.sync(() => signal("SIGCONT"))
    }
  })

let shared: Promise<string> | undefined

/** `DATABASE_URL`, or a server that the tests of this process share; it dies with the process. */
const sharedUrl: Effect.Effect<string> = Effect.promise(() => {
  const { DATABASE_URL } = process.env
  if (DATABASE_URL !== undefined && DATABASE_URL !== "") return Promise.resolve(DATABASE_URL)
  shared ??= Effect.runPromise(
    // A scope that nobody closes: the shell ends the server with this process.
    Effect.gen(function* () {
      const server = yield* Scope.provide(make(), yield* Scope.make())
      return server.url
    })
  )
  return shared
})

/** The url of an empty database on a server, for as long as the scope. */
export const databaseOn = (serverUrl: string): Effect.Effect<string, never, Scope.Scope> =>
  Effect.gen(function* () {
    const url = new URL(serverUrl)
    const run = (statement: string) =>
      SqlClient.SqlClient.use((sql) => sql.unsafe(statement)).pipe(
        Effect.provide(PgClient.layer({ url: Redacted.make(url.href), maxConnections: 1 })),
        Effect.orDie
      )
    const name = `cohort_${globalThis.crypto.randomUUID().replaceAll("-", "")}`
    yield* Effect.acquireRelease(run(`CREATE DATABASE ${name}`), () => run(`DROP DATABASE ${name} WITH (FORCE)`))
    const own = new URL(url)
    own.pathname = `/${name}`
    return own.href
  })

/** An empty database on the server that tests share. For tests that leave the server alone. */
export const database: Effect.Effect<string, never, Scope.Scope> = Effect.flatMap(sharedUrl, databaseOn)
