/**
 * Runs instances as processes, one each, on the servers that the environment names,
 * or on private ones.
 *
 * - A child that ends although nobody stopped it is started again: at once when it
 *   had run for a while, otherwise after a pause that grows. It keeps its name and its
 *   port. Its id is another (`a`, `a.2`, …), as ids are unique per start.
 * - Closing the scope stops all children at once, by SIGTERM: they drain. A child that
 *   has not ended after {@link Host.stopWithin}, or when a second signal arrives, is killed.
 * - A child's input is a pipe from this process, so that it notices the death of it.
 * - What a child prints is printed, each line after the child's name.
 */
import * as Clock from "effect/Clock"
import * as Console from "effect/Console"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as ChildProcess from "effect/process/ChildProcess"
import type { ChildProcessHandle, ChildProcessSpawner } from "effect/process/ChildProcessSpawner"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import * as Child from "./Child.ts"
import type { Backends } from "../layers/Cohort.ts"
import * as Backing from "./Backing.ts"
import * as Host from "./Host.ts"
import { describe, ofConfig, Refused } from "./Refused.ts"
import * as Server from "./Server.ts"
import * as Signals from "./Signals.ts"

/** How long a child may take to listen. */
const startWithin = "60 seconds"
/** A child that ran this long was well. */
const well = "30 seconds"

const restarts = Schedule.min([Schedule.exponential("200 millis"), Schedule.spaced("10 seconds")]).pipe(
  Schedule.jittered
)

export interface Options {
  readonly backends: Backends
  readonly app: string
  readonly names: ReadonlyArray<string>
  /** Port of the first instance; the others follow. 0 takes free ones. */
  readonly port: number
  /** Directory of the CSV files. */
  readonly files: string
  /** Below which the children log nothing. */
  readonly logLevel: "info" | "error"
  /** Whether what the app has stored is forgotten when the scope closes. */
  readonly temporary: boolean
}

export interface Cluster {
  readonly instances: ReadonlyArray<Host.RunningInstance>
  /** Where the servers are, in words. */
  readonly servers: string
  /** Fails when the cluster cannot go on. */
  readonly failed: Effect.Effect<never, Refused>
}

/** Prints each line of a child's output after its name. */
const forward = <E>(name: string, output: Stream.Stream<Uint8Array, E>, print: (line: string) => Effect.Effect<void>) =>
  output.pipe(
    Stream.decodeText(),
    Stream.splitLines,
    Stream.runForEach((line) => print(`[${name}] ${line}`)),
    Effect.ignore
  )

const howItEnded = (child: ChildProcessHandle): Effect.Effect<string> =>
  Effect.match(child.exitCode, {
    onSuccess: (code) => `ended with exit code ${code}`,
    onFailure: (error) => `was ended by ${/SIG\w+/.exec(describe(error))?.[0] ?? describe(error)}`
  })

export const start = (
  options: Options
): Effect.Effect<Cluster, Refused, ChildProcessSpawner | FileSystem.FileSystem | Scope.Scope> =>
  Effect.gen(function* () {
    const hurry = yield* Signals.second
    const stopWithin = yield* Effect.mapError(Host.stopWithin, ofConfig)
    const servers = yield* Effect.forEach(yield* Backing.servers(options.backends), Server.make, {
      concurrency: "unbounded"
    })
    if (options.temporary) {
      for (const { forget } of servers) yield* Effect.addFinalizer(() => forget(options.app))
    }
    // Another supervisor may run the same app on those servers. Instances of one id would take each other's broadcasts
    // for their own, and members, leases and jobs could not be told apart.
    const isAlone = servers.every(({ isPrivate }) => isPrivate) || options.temporary
    const suffix = isAlone ? "" : `-${SecureRandom.uuidV4Unsafe().replaceAll("-", "").slice(0, 12)}`

    const command = (id: string, port: number) =>
      ChildProcess.make(
        process.execPath,
        [
          ...process.execArgv,
          process.argv[1]!,
          ...["instance", "--id", id, "--app", options.app, "--port", String(port)],
          ...["--files", options.files, "--log-level", options.logLevel]
        ],
        {
          env: Object.assign(Backing.environment(options.backends), ...servers.map(({ env }) => env)),
          extendEnv: true,
          stdin: "pipe",
          additionalFds: { [`fd${Child.messagesFd}`]: { type: "output" } },
          killSignal: "SIGKILL"
        }
      )

    const stop = (child: ChildProcessHandle, output: Fiber.Fiber<void>) =>
      Effect.raceFirst(
        child.kill({ killSignal: "SIGTERM", forceKillAfter: stopWithin }),
        Effect.andThen(Effect.interruptible(Deferred.await(hurry)), child.kill({ killSignal: "SIGKILL" }))
      ).pipe(Effect.andThen(Effect.timeoutOption(Fiber.await(output), "1 second")), Effect.ignore)

    /** Runs a child until it ends; tells how. `onListening` may be called once. */
    const runOnce = (name: string, id: string, port: number, onListening: (url: string) => Effect.Effect<void>) =>
      Effect.gen(function* () {
        const child = yield* command(id, port)
        const output = yield* Effect.forkScoped(
          Effect.all([forward(name, child.stdout, Console.log), forward(name, child.stderr, Console.error)], {
            concurrency: 2,
            discard: true
          })
        )
        yield* Effect.addFinalizer(() => stop(child, output))
        const listening = yield* Deferred.make<void>()
        let failure: string | undefined
        // Ends with the child.
        const messages = yield* child.getOutputFd(Child.messagesFd).pipe(
          Stream.decodeText(),
          Stream.splitLines,
          Stream.mapEffect((line) => Schema.decodeEffect(Child.Message)(line)),
          Stream.runForEach((message) => {
            if (message._tag === "Listening") {
              return Effect.andThen(onListening(message.url), Deferred.succeed(listening, undefined))
            }
            failure = message.detail
            return Effect.void
          }),
          Effect.ignore,
          Effect.forkScoped
        )
        const inTime = yield* Effect.raceFirst(Deferred.await(listening), Fiber.await(messages)).pipe(
          Effect.timeoutOption(startWithin)
        )
        if (Option.isNone(inTime)) return `does not listen within ${startWithin}`
        yield* Fiber.await(messages)
        const ended = yield* howItEnded(child)
        yield* Fiber.await(output)
        return failure ?? ended
      }).pipe(
        Effect.scoped,
        Effect.catch((error) => Effect.succeed(describe(error)))
      )

    /** Keeps an instance running. `first` is done when it listens, or cannot. */
    const keep = (name: string, firstPort: number, first: Deferred.Deferred<Host.RunningInstance, Refused>) =>
      Effect.suspend(() => {
        let count = 0
        let port = firstPort
        const once = Effect.gen(function* () {
          const id = ++count === 1 ? name + suffix : `${name}${suffix}.${count}`
          const since = yield* Clock.monotonicTimeNanos
          const how = yield* runOnce(name, id, port, (url) => {
            port = Number(new URL(url).port)
            return count === 1 ? Deferred.succeed(first, { id, url }) : Effect.logInfo(`Listens again, as ${id}`)
          })
          const isFirst = yield* Deferred.fail(first, new Refused({ detail: `instance ${name}: ${how}` }))
          if (isFirst) return yield* Effect.never
          yield* Effect.logError(`The process ${how}; starting it again`)
          return (yield* Clock.monotonicTimeNanos) - since
        })
        return once.pipe(
          Effect.repeat({ schedule: restarts, while: (lived) => lived < Duration.toNanosUnsafe(well) }),
          Effect.forever,
          Effect.annotateLogs({ instance: name })
        )
      })

    const firsts = yield* Effect.forEach(options.names, () => Deferred.make<Host.RunningInstance, Refused>())
    yield* Effect.forEach(
      options.names,
      (name, i) => keep(name, options.port === 0 ? 0 : options.port + i, firsts[i]!),
      { concurrency: "unbounded", discard: true }
    ).pipe(Effect.forkScoped)
    const failed = Effect.raceAllFirst(servers.map(({ ended }) => ended))
    const instances = yield* Effect.raceFirst(
      Effect.forEach(firsts, Deferred.await, { concurrency: "unbounded" }),
      failed
    )
    return { instances, servers: servers.map(({ where }) => where).join(" and "), failed }
  })
