/**
 * A server of the host's own, on free ports of 127.0.0.1, with a password that only
 * the host's processes know, in a temporary directory.
 *
 * It lives as long as its scope, and not longer than this process, however that
 * ends: a shell whose input is this process waits with it, then kills it and removes
 * the directory.
 */
import { createServer } from "node:net"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as FileSystem from "effect/FileSystem"
import * as ChildProcess from "effect/process/ChildProcess"
import type { ChildProcessSpawner } from "effect/process/ChildProcessSpawner"
import * as Random from "effect/Random"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { describe, Refused } from "./Refused.ts"

export interface PrivateServer {
  readonly url: Redacted.Redacted<string>
  /** Fails when the server ends although its scope is open. */
  readonly ended: Effect.Effect<never, Refused>
}

export type Requires = ChildProcessSpawner | FileSystem.FileSystem | Scope.Scope

export type Environment = Readonly<Record<string, string | Redacted.Redacted<string> | undefined>>

export interface Kind {
  /** `"redis-server"`. */
  readonly name: string
  /** What to do where there is none. */
  readonly advice: string
  /**
   * Starts the server in the background, as `$server`; others that end with it are `$others`. Ends with 127 where it is
   * not installed. Nothing of it may keep descriptor 3 open.
   */
  readonly script: string
  /** Makes what it reads, in the directory; `freePort` is another one each time. */
  readonly configure: (
    directory: string,
    freePort: Effect.Effect<number>
  ) => Effect.Effect<{ readonly url: Redacted.Redacted<string>; readonly env: Environment }, Refused>
  /** What it prints when it can be used, and when it cannot start. */
  readonly ready: string
  readonly problem: RegExp
  readonly startWithin: string & `${number} seconds`
}

const watch = (script: string): string => `
exec 3<&0 </dev/null
others=
${script}
(cat >/dev/null; trap '' TERM; kill -9 $server $others; rm -rf "$DIRECTORY") <&3 >/dev/null 2>&1 & watcher=$!
exec 3<&-
wait $server
code=$?
kill $watcher $others
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

export const start = (kind: Kind): Effect.Effect<PrivateServer, Refused, Requires> =>
  Effect.gen(function* () {
    const fs = yield* FileSystem.FileSystem
    const directory = yield* Effect.mapError(
      fs.makeTempDirectoryScoped({ prefix: `cohort-host-${kind.name.split("-")[0]}-` }),
      (error) => new Refused({ detail: `no directory for ${kind.name}: ${describe(error)}` })
    )
    for (let attempt = 1; ; attempt++) {
      const started = yield* Effect.result(launch(kind, directory))
      if (started._tag === "Success") return started.success
      // Someone may have taken a port since it was free.
      if (attempt === 10 || !/already in use|failed listening|eaddrinuse/i.test(started.failure.detail)) {
        return yield* started.failure
      }
    }
  })

const launch = Effect.fnUntraced(function* (kind: Kind, directory: string) {
  const { name } = kind
  const { env, url } = yield* kind.configure(directory, freePort)
  const server = yield* ChildProcess.make("sh", ["-c", watch(kind.script)], {
    env: { PATH: process.env.PATH, LANG: "C.UTF-8", HOME: directory, DIRECTORY: directory, ...env },
    extendEnv: false,
    stdin: "pipe",
    killSignal: "SIGKILL"
  }).pipe(Effect.mapError((error) => new Refused({ detail: `${name} does not start: ${describe(error)}` })))

  const ready = yield* Deferred.make<void>()
  const last: Array<string> = []
  const log = yield* server.all.pipe(
    Stream.decodeText(),
    Stream.splitLines,
    Stream.runForEach((line) => {
      last.push(line)
      if (last.length > 50) last.shift()
      return line.includes(kind.ready) ? Deferred.succeed(ready, undefined) : Effect.void
    }),
    Effect.ignore,
    Effect.forkScoped
  )

  const ended = Effect.gen(function* () {
    const code = yield* Effect.orElseSucceed(server.exitCode, () => -1)
    yield* Fiber.await(log)
    if (code === 127) return yield* new Refused({ detail: `there is no ${name} on the PATH: ${kind.advice}` })
    // One that was killed did not end for what it complained of before.
    const reason =
      code === 137 ? undefined : last.findLast((line) => kind.problem.test(line) && !line.includes("WARNING"))
    return yield* new Refused({ detail: `${name} ended: ${reason?.replace(/^.*?# /, "") ?? `exit code ${code}`}` })
  })

  yield* Effect.raceFirst(Deferred.await(ready), ended).pipe(
    Effect.timeoutOrElse({
      duration: kind.startWithin,
      orElse: () => Effect.fail(new Refused({ detail: `${name} does not start within ${kind.startWithin}` }))
    })
  )
  return { url, ended } satisfies PrivateServer
})
