/** What the tests of `Lock` share. */
import { assert } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { Lock } from "../../../index.ts"
import type { Backend, TestBackend, TestInstance } from "../Backend.ts"
import { support } from "../support.ts"

/** A lease in a scope of its own. */
export interface Holding {
  readonly lease: Lock.Lease
  readonly release: Effect.Effect<void>
}

export const ownScope = Effect.acquireRelease(Scope.make(), (scope) => Scope.close(scope, Exit.void))

/** Takes a lock, until `release` or the end of the test. */
export const hold = (
  instance: TestInstance,
  key: string,
  options?: Lock.LeaseOptions
): Effect.Effect<Holding, Lock.LockError, Scope.Scope> =>
  Effect.gen(function* () {
    const scope = yield* ownScope
    const lease = yield* Scope.provide(instance.run(Lock.acquire(key, options)), scope)
    return { lease, release: Scope.close(scope, Exit.void) }
  })

/** Tries to take a lock and gives it back at once. */
export const isFree = (instance: TestInstance, key: string) =>
  Effect.map(Effect.scoped(instance.run(Lock.tryAcquire(key))), Option.isSome)

/** Takes a lock as soon as it is free, and gives it back; the fence it got. */
export const pass = (instance: TestInstance, key: string) =>
  instance.run(Lock.runExclusive(key, ({ fence }) => Effect.succeed(fence)))

/** Starts a fiber, and gives it the turn. */
export const start = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

export const hasEnded = (fiber: Fiber.Fiber<unknown, unknown>) => fiber.pollUnsafe() !== undefined

/** Cuts an instance off until it is reconnected, or the test ends. */
export const cut = (instance: TestInstance) =>
  Effect.andThen(
    Effect.addFinalizer(() => instance.reconnect),
    instance.disconnect
  )

export const failsWith = <A, E, R>(tag: Lock.LockError["reason"]["_tag"], operation: Effect.Effect<A, E, R>) =>
  Effect.map(Effect.flip(operation), (error) => {
    assert.instanceOf(error, Lock.LockError)
    assert.strictEqual(error.reason._tag, tag)
    assert.strictEqual(error.message, error.reason.message)
    return error.reason
  })

/** Asserts that an operation fails with `InvalidInput` for the field. */
export const refused = <A, E, R>(operation: Effect.Effect<A, E, R>, field: string) =>
  Effect.map(failsWith("InvalidInput", operation), (reason) => {
    assert.strictEqual(reason._tag === "InvalidInput" && reason.field, field)
    assert.include(reason.message, field)
  })

/** Work that says when it runs and when it was stopped, and goes on until the test ends it. */
export const gated = <A = void>() =>
  Effect.gen(function* () {
    const gate = yield* Deferred.make<A>()
    const started = yield* Deferred.make<void>()
    const work = {
      running: 0,
      stopped: 0,
      started: Deferred.await(started),
      end: (value: A) => Deferred.succeed(gate, value),
      effect: Effect.suspend(() => {
        work.running++
        return Effect.andThen(Deferred.succeed(started, undefined), Deferred.await(gate))
      }).pipe(
        Effect.onExit((exit) =>
          Effect.sync(() => {
            work.running--
            if (Exit.isFailure(exit)) work.stopped++
          })
        )
      )
    }
    return work
  })

export const oddKeys = [
  "*",
  ":",
  "a:b",
  "a%3Ab",
  "[",
  "[a-z]",
  "{tag}",
  "\\",
  " ",
  "\n",
  "é🎉",
  "__proto__",
  "x".repeat(10_240)
]

export const badTtls: ReadonlyArray<readonly [string, Duration.Input]> = [
  ["0", 0],
  ["-1", -1],
  ["NaN", Number.NaN],
  ["Infinity", Number.POSITIVE_INFINITY],
  ["text", "soon" as "1 second"]
]

/** What the tests of one backend share. */
export const make = (backend: Backend) => {
  const { scenario, test, waitFor, within } = support(backend)
  const { settle } = backend

  const two = (cluster: TestBackend) => Effect.all([cluster.instance(), cluster.instance()])
  const three = (cluster: TestBackend) => Effect.all([cluster.instance(), cluster.instance(), cluster.instance()])

  return { backend, scenario, test, waitFor, within, settle, two, three }
}

export type Fixture = ReturnType<typeof make>
