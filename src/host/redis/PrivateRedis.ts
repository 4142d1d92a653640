/**
 * A redis-server of the host's own, on a free port of 127.0.0.1, with a password
 * that only the host's processes know, in a temporary directory.
 *
 * It lives as long as its scope, and not longer than this process, however that
 * ends: a shell whose input is this process waits with it, then kills it and removes
 * the directory.
 */
import { createServer } from "node:net"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as ChildProcess from "effect/process/ChildProcess"
import type { ChildProcessSpawner } from "effect/process/ChildProcessSpawner"
import * as Random from "effect/Random"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { describe, Refused } from "../Refused.ts"

export interface PrivateRedis {
  readonly url: Redacted.Redacted<string>
  /** Fails when the server ends although its scope is open. */
  readonly ended: Effect.Effect<never, Refused>
}

/** `redis-server` reads its configuration from its input: a command line can be seen by everyone. */
const watch = `
exec 3<&0
command -v redis-server >/dev/null || exit 127
redis-server - 3<&- <<END &
$CONFIG
END
server=$!
(cat >/dev/null; trap '' TERM; kill -9 $server; rm -rf "$DIRECTORY") <&3 >/dev/null 2>&1 & watcher=$!
exec 3<&-
wait $server
code=$?
kill $watcher
exit $code`

/**
 * A port nobody listens on; below those the system gives to outgoing connections,
 * which would take it while the server is not up yet.
 */
const freePort = Effect.gen(function* () {
  while (true) {
    const port = yield* Random.nextIntBetween(12_000, 22_000)
    const isFree = yield* Effect.callback<boolean>((resume) => {
      const server = createServer()
      server.once("error", () => resume(Effect.succeed(false)))
      server.listen(port, "127.0.0.1", () => server.close(() => resume(Effect.succeed(true))))
    })
    if (isFree) return port
  }
})

type Requires = ChildProcessSpawner | FileSystem.FileSystem | Scope.Scope

export const make: Effect.Effect<PrivateRedis, Refused, Requires> = Effect.gen(function* () {
  const fs = yield* FileSystem.FileSystem
  const directory = yield* Effect.mapError(
    fs.makeTempDirectoryScoped({ prefix: "cohort-host-redis-" }),
    (error) => new Refused({ detail: `no directory for redis-server: ${describe(error)}` })
  )
  for (let attempt = 1; ; attempt++) {
    const started = yield* Effect.result(launch(directory))
    if (started._tag === "Success") return started.success
    // Someone may have taken the port since it was free.
    if (attempt === 10 || !/already in use|failed listening/i.test(started.failure.detail))
      return yield* started.failure
  }
})

const launch = Effect.fnUntraced(function* (directory: string) {
  const port = yield* freePort
  const password = SecureRandom.uuidV4Unsafe()
  const config = [
    "bind 127.0.0.1",
    `port ${port}`,
    `requirepass ${password}`,
    `dir "${directory}"`,
    'save ""',
    "appendonly yes",
    "daemonize no",
    'logfile ""'
  ].join("\n")
  const server = yield* ChildProcess.make("sh", ["-c", watch], {
    env: { CONFIG: Redacted.make(config), DIRECTORY: directory },
    extendEnv: true,
    stdin: "pipe",
    killSignal: "SIGKILL"
  }).pipe(Effect.mapError((error) => new Refused({ detail: `redis-server does not start: ${describe(error)}` })))

  const ready = yield* Deferred.make<void>()
  const last: Array<string> = []
  const log = yield* server.all.pipe(
    Stream.decodeText(),
    Stream.splitLines,
    Stream.runForEach((line) => {
      last.push(line)
      if (last.length > 20) last.shift()
      return line.includes("Ready to accept connections") ? Deferred.succeed(ready, undefined) : Effect.void
    }),
    Effect.ignore,
    Effect.forkScoped
  )

  const why = (code: number): string => {
    if (code === 127) {
      return "there is no redis-server on the PATH: install it (apt-get install redis-server, brew install redis), or name a Redis in REDIS_URL"
    }
    const reason = last.findLast((line) => /already in use|failed|fatal|can't/i.test(line) && !line.includes("WARNING"))
    return `redis-server ended: ${reason?.replace(/^.*?# /, "") ?? `exit code ${code}`}`
  }
  const ended = Effect.gen(function* () {
    const code = yield* Effect.orElseSucceed(server.exitCode, () => -1)
    yield* Fiber.await(log)
    return yield* new Refused({ detail: why(code) })
  })

  yield* Effect.raceFirst(Deferred.await(ready), ended).pipe(
    Effect.timeoutOrElse({
      duration: "10 seconds",
      orElse: () => Effect.fail(new Refused({ detail: "redis-server does not start within 10 seconds" }))
    })
  )
  return { url: Redacted.make(`redis://:${password}@127.0.0.1:${port}`), ended } satisfies PrivateRedis
})
