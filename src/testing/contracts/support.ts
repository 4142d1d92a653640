/** What the suites share: a test with its cluster and its logs, waiting, and bounds. */
import { describe, it } from "@effect/vitest"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Metric from "effect/Metric"
import type * as Scope from "effect/Scope"
import type { Backend, TestBackend } from "./Backend.ts"

export interface LogEntry {
  readonly level: string
  readonly message: unknown
  readonly annotations: Record<string, unknown>
}

/** The tests of a suite on a backend. */
export const describeOn = (backend: Backend, name: string, tests: () => void): void => {
  describe(`${name} on ${backend.name}`, { concurrent: backend.concurrent, timeout: 60_000 }, tests)
}

/** Waits until a condition holds, letting time pass in small steps; fails after them. */
export const eventually = (
  backend: Backend,
  condition: Effect.Effect<boolean, any>,
  what: string,
  options: { readonly steps?: number; readonly step?: Duration.Input } = {}
): Effect.Effect<void> =>
  Effect.gen(function* () {
    for (let i = 0; i < (options.steps ?? 300); i++) {
      if (yield* Effect.orElseSucceed(condition, () => false)) return
      yield* backend.advance(options.step ?? "50 millis")
    }
    return yield* Effect.die(new Error(`never happened: ${what}`))
  })

export const support = (backend: Backend) => {
  /** Runs a test body on a fresh backend; `logs` holds what the library logs meanwhile. */
  const scenario = <A, E>(
    body: (cluster: TestBackend, logs: Array<LogEntry>) => Effect.Effect<A, E, Scope.Scope>
  ): Effect.Effect<A, E, Scope.Scope> =>
    Effect.suspend(() => {
      const logs: Array<LogEntry> = []
      const logger = Logger.map(Logger.formatStructured, (entry) => void logs.push(entry))
      return Effect.flatMap(backend.make, (cluster) => body(cluster, logs)).pipe(
        Effect.provide(Layer.merge(Logger.layer([logger]), backend.layer))
      )
    })

  const test = <A, E>(
    name: string,
    body: (cluster: TestBackend, logs: Array<LogEntry>) => Effect.Effect<A, E, Scope.Scope>
  ): void => it.effect(name, () => scenario(body))

  const waitFor = (condition: () => boolean, what: string): Effect.Effect<void> =>
    eventually(backend, Effect.sync(condition), what)

  /** Runs an effect that must end within `seconds`, and gives its result. */
  const within = <A, E, R>(seconds: number, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.gen(function* () {
      const fiber = yield* Effect.forkChild(effect)
      const ended = Effect.sync(() => fiber.pollUnsafe() !== undefined)
      yield* eventually(backend, ended, `an end within ${seconds} seconds`, {
        steps: seconds * 10,
        step: "100 millis"
      })
      return yield* Fiber.join(fiber)
    })

  return { scenario, test, waitFor, within }
}

/** An error that throws when it is looked at, as some with getters of their own do. */
export const unprintable: Error = Object.defineProperty(new Error("unprintable"), "stack", {
  get() {
    throw new Error("thrown by a getter")
  }
})

/** Reads how much a counter has grown since. */
export const counting = (metric: Metric.Metric<number, Metric.CounterState<number>>) =>
  Effect.gen(function* () {
    const before = (yield* Metric.value(metric)).count
    return Effect.map(Metric.value(metric), ({ count }) => count - before)
  })
