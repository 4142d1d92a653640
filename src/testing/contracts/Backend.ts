/**
 * What a contract suite needs of a backend: instances that share it, a way to let
 * time pass, and a way to cut an instance off.
 */
import { describe } from "@effect/vitest"
import type * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import type { Cohort, Instance } from "../../index.ts"

/** One instance of the app under test, alive as long as the test's scope. */
export interface TestInstance {
  readonly id: string
  /** Runs an effect with this instance's services. */
  readonly run: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, Exclude<R, Cohort.Services>>
  readonly context: Context.Context<Cohort.Services>
  /** Closes the instance before the test ends, as a clean stop would. */
  readonly close: Effect.Effect<void>
  /** Cuts the instance off from its backend, until `reconnect`. */
  readonly disconnect: Effect.Effect<void>
  readonly reconnect: Effect.Effect<void>
}

/** A cluster on a backend of its own (or one that nobody else's names reach). */
export interface TestBackend {
  readonly instance: (options?: Instance.Options) => Effect.Effect<TestInstance, never, Scope.Scope>
}

/**
 * A promise a backend cannot keep is `false` here, with the reason in the README's
 * guarantee table; the suites then test that the documented weaker behaviour holds.
 */
export interface Features {
  /** Pending jobs survive closing the last instance when a `KeyValueStore` is provided. */
  readonly savesQueue: boolean
  /** A job is not taken in while one of its id lives, or ended less than its `keepId` ago. */
  readonly deduplicates: boolean
  /** An attempt goes on, and its end counts, while its instance is cut off for less than a lease. */
  readonly attemptsOutliveCuts: boolean
}

/** Of a backend that keeps the whole contract. */
export const allFeatures: Features = { savesQueue: true, deduplicates: true, attemptsOutliveCuts: true }

export interface Backend {
  readonly name: string
  readonly features: Features
  /** A fresh backend for one test. */
  readonly make: Effect.Effect<TestBackend, never, Scope.Scope>
  /** Lets time pass: virtual on memory, real on servers. */
  readonly advance: (duration: Duration.Input) => Effect.Effect<void>
  /** Anything the tests of this backend need in context. */
  readonly layer?: Layer.Layer<never>
  /** Whether its tests, which mostly wait, run beside each other. */
  readonly concurrent?: boolean
}

/** The tests of a suite on a backend. */
export const describeOn = (backend: Backend, name: string, tests: () => void): void => {
  describe(`${name} on ${backend.name}`, { concurrent: backend.concurrent ?? false }, tests)
}

/** Waits until a condition holds, letting time pass in small steps; fails after `within`. */
export const eventually = (
  backend: Backend,
  condition: Effect.Effect<boolean, any>,
  what: string,
  options: { readonly steps?: number; readonly step?: Duration.Input } = {}
): Effect.Effect<void> =>
  Effect.gen(function* () {
    for (let i = 0; i < (options.steps ?? 300); i++) {
      if (yield* Effect.orDie(condition)) return
      yield* backend.advance(options.step ?? "50 millis")
    }
    return yield* Effect.die(new Error(`never happened: ${what}`))
  })
