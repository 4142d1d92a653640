/** What the fault tests of queues share: a queue on some server, workers in processes, and what these write down. */
import { spawn } from "node:child_process"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as ManagedRuntime from "effect/ManagedRuntime"
import { EventQueue } from "../../src/index.ts"
import type * as RedisServer from "../servers/RedisServer.ts"
import { waitUntil } from "../servers/RedisServer.ts"
import { type Does, type Event, FaultJob, layer, leaseMillis } from "./queue-worker.ts"

export const script = (name: string) => new URL(name, import.meta.url).pathname

/** `url` is the queue's server. */
export const make = (options: {
  readonly url: string
  readonly notes: RedisServer.RedisServer
  readonly app: string
  /** Of the operations of this process. */
  readonly timeout: Duration.Input
  /** How long to wait for what has to happen, in milliseconds. */
  readonly within: number
}) => {
  const { app, notes } = options

  /** A worker in a process of its own, that is taking jobs. */
  const startWorker = (url = options.url, lease = leaseMillis) =>
    Effect.gen(function* () {
      const worker = yield* Effect.acquireRelease(
        Effect.sync(() =>
          spawn(process.execPath, [script("./queue-worker.ts"), url, notes.url, String(lease), app], {
            stdio: ["ignore", "pipe", "inherit"]
          })
        ),
        (worker) => Effect.sync(() => worker.kill("SIGKILL"))
      )
      yield* Effect.promise(() => {
        const gone = () => new Error(`the worker is gone: ${worker.exitCode ?? worker.signalCode}`)
        return new Promise((ready, fail) => worker.stdout.once("data", ready).once("end", () => fail(gone())))
      })
      return { pid: worker.pid!, signal: (signal: NodeJS.Signals) => Effect.sync(() => void worker.kill(signal)) }
    })

  const until = (what: string, condition: Effect.Effect<boolean>, within = options.within) =>
    Effect.promise(() =>
      waitUntil(
        // One that cannot be answered does not hold.
        () => Effect.runPromise(Effect.catchCause(condition, () => Effect.succeed(false))),
        () => `never: ${what}`,
        within
      )
    )

  /** A client of the queue in this process. */
  const client = Effect.map(
    Effect.acquireRelease(
      Effect.sync(() => ManagedRuntime.make(layer(options.url, app, options.timeout))),
      (runtime) => runtime.disposeEffect
    ),
    (runtime) => {
      const run = <A, E>(effect: Effect.Effect<A, E, EventQueue.EventQueue>) =>
        Effect.promise(() => runtime.runPromise(effect))
      const depth = run(EventQueue.depth(FaultJob))
      return {
        publish: (id: string, does: Does, maxRetries = 3, more: EventQueue.PublishOptions = { id }) =>
          run(EventQueue.publish(FaultJob, { id, does }, { maxRetries, ...more })),
        depth,
        /** Waits until nothing is left. */
        done: (within?: number) =>
          until(
            "all done",
            Effect.map(depth, (depth) => JSON.stringify(depth) === JSON.stringify(empty)),
            within
          ),
        letters: run(EventQueue.deadLetters(FaultJob))
      }
    }
  )

  const events = Effect.map(notes.command("lrange", "events", "0", "-1"), (lines) =>
    (lines as ReadonlyArray<string>).map((line) => JSON.parse(line) as Event)
  )

  /** Waits until the handler of a job has written that down. */
  const seen = (id: string, what: Event["what"], count = 1) => {
    const found = Effect.map(events, (all) => all.filter((event) => event.id === id && event.what === what))
    return Effect.andThen(
      until(
        `${id} ${what} ${count} times`,
        Effect.map(found, (all) => all.length >= count)
      ),
      found
    )
  }

  /** Lets a handler that waits go on. */
  const allow = (id: string) => notes.command("set", `go:${id}`, "")

  return { allow, client, events, seen, startWorker, until }
}

export const isAlive = (pid: number) => {
  try {
    return process.kill(pid, 0)
  } catch {
    return false
  }
}

export const empty = { ready: 0, delayed: 0, inFlight: 0, dead: 0 }
