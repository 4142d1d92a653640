/** What the tests of `Cache` share. */
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { Cache } from "../../../index.ts"
import type { Backend, TestBackend, TestInstance } from "../Backend.ts"
import { eventually, type LogEntry, support } from "../support.ts"

export interface Cluster extends TestBackend {
  /** Waits until its instances read what was written before; no time at all where reads follow writes. */
  readonly arrived: Effect.Effect<void>
}

export const numbers = (instance: TestInstance, options?: Cache.Options) =>
  instance.run(Cache.make("numbers", Schema.Number, options))

/** Asserts that an operation fails with `InvalidInput` for the field. */
export const refused = <A, E, R>(operation: Effect.Effect<A, E, R>, field: string) =>
  Effect.map(Effect.flip(operation), (error) => {
    assert.instanceOf(error, Cache.CacheError)
    assert.strictEqual(error.reason._tag === "InvalidInput" && error.reason.field, field)
    assert.include(error.message, field)
  })

export const unavailable = <A, E, R>(operation: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(operation), (error) => {
    assert.instanceOf(error, Cache.CacheError)
    assert.strictEqual(error.reason._tag, "Unavailable")
    assert.include(error.message, "unavailable")
  })

/** A load that counts its runs. */
export const counted = <A>(value: A) => {
  const load = {
    runs: 0,
    effect: Effect.sync(() => {
      load.runs++
      return value
    })
  }
  return load
}

/** A load that says when it runs and whether it was stopped, and waits for the test to end it. */
export const gated = <A, E = never>() =>
  Effect.gen(function* () {
    const gate = yield* Deferred.make<A, E>()
    const started = yield* Deferred.make<void>()
    const load = {
      runs: 0,
      stopped: 0,
      started: Deferred.await(started),
      open: (exit: Exit.Exit<A, E>) => Deferred.done(gate, exit),
      effect: Effect.suspend(() => {
        load.runs++
        return Effect.andThen(Deferred.succeed(started, undefined), Deferred.await(gate))
      }).pipe(
        Effect.onInterrupt(() =>
          Effect.sync(() => {
            load.stopped++
          })
        )
      )
    }
    return load
  })

/** Starts a caller, and gives it the turn. */
export const start = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

export const warnings = (logs: ReadonlyArray<LogEntry>, about: string) =>
  logs.filter((log) => log.level === "WARN" && JSON.stringify(log.message).includes(about))

export const falsy = [0, false, "", null] as const
export const Falsy = Schema.Union([Schema.Number, Schema.Boolean, Schema.String, Schema.Null])

/** Keys that a backend's own syntax could trip over. */
export const oddKeys = [
  "*",
  "**",
  "?",
  ":",
  "a:b",
  "a%3Ab",
  "a:",
  ":a",
  "[",
  "[a-z]",
  "]",
  "{tag}",
  "%",
  "%s",
  "\\",
  "\\*",
  " ",
  "\n",
  "é🎉",
  "\ud800",
  "\udc00",
  "\ufffd",
  "\u0001%d800",
  "__proto__",
  "constructor",
  "x".repeat(10_240)
]

export const badTtls: ReadonlyArray<readonly [string, Duration.Input]> = [
  ["0", 0],
  ["-1", -1],
  ["NaN", Number.NaN],
  ["-Infinity", Number.NEGATIVE_INFINITY],
  ["text", "soon" as "1 second"]
]

/** What the tests of one backend share. */
export const make = (backend: Backend) => {
  const { scenario: scenarioOn, within } = support(backend)
  const { settle } = backend
  const { readsFollowWrites } = backend.features

  const following = (cluster: TestBackend): Cluster => {
    const instances: Array<TestInstance> = []
    let count = 0
    const cacheOn = ({ run }: TestInstance) => run(Cache.make("arrivals", Schema.Number))
    // Writes are seen in one order: who sees the last one has seen all.
    const arrived = Effect.gen(function* () {
      const n = ++count
      yield* (yield* cacheOn(instances[0]!)).set("n", n)
      for (const instance of instances) {
        const cache = yield* cacheOn(instance)
        const isThere = Effect.map(cache.get("n"), (found) => Option.isSome(found) && found.value >= n)
        yield* eventually(backend, isThere, "what was written is read", { step: "1 millis", steps: 10_000 })
      }
    })
    return {
      instance: (options) => Effect.tap(cluster.instance(options), (made) => Effect.sync(() => instances.push(made))),
      arrived: readsFollowWrites ? Effect.void : Effect.orDie(arrived)
    }
  }

  const scenario = <A, E>(body: (cluster: Cluster, logs: Array<LogEntry>) => Effect.Effect<A, E, Scope.Scope>) =>
    scenarioOn((cluster, logs) => Effect.suspend(() => body(following(cluster), logs)))

  const test = <A, E>(
    name: string,
    body: (cluster: Cluster, logs: Array<LogEntry>) => Effect.Effect<A, E, Scope.Scope>
  ): void => it.effect(name, () => scenario(body))

  return { backend, within, settle, readsFollowWrites, scenario, test }
}

export type Fixture = ReturnType<typeof make>
