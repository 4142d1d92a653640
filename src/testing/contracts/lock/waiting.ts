/** Waiting for a while, and not any longer. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { Lock } from "../../../index.ts"
import { type Fixture, hasEnded, hold, isFree, ownScope, pass, start } from "./fixture.ts"

export const tests = ({ backend, test, waitFor, within, settle, two, three }: Fixture): void => {
  describe("tryAcquire", () => {
    test("with timeout 0, which is the default, never waits", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const scope = yield* ownScope
        const taken = yield* Scope.provide(a.run(Lock.tryAcquire("k")), scope)
        assert.isTrue(yield* Option.getOrThrow(taken).isHeld)
        for (const instance of [a, b]) {
          for (const options of [undefined, {}, { timeout: 0 }]) {
            assert.isTrue(Option.isNone(yield* Effect.scoped(instance.run(Lock.tryAcquire("k", options)))))
          }
        }
        yield* Scope.close(scope, Exit.void)
        assert.isTrue(yield* isFree(b, "k"))
      }))

    test("gives None when the time is up, not earlier, and leaves no trace", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const holder = yield* hold(a, "k")
        const trying = yield* start(Effect.scoped(b.run(Lock.tryAcquire("k", { timeout: "600 millis" }))))
        yield* backend.advance("400 millis")
        assert.isFalse(hasEnded(trying))
        yield* backend.advance("400 millis")
        yield* waitFor(() => hasEnded(trying), "None")
        assert.isTrue(Option.isNone(yield* Fiber.join(trying)))
        yield* holder.release
        assert.isTrue(yield* isFree(a, "k"))
      }))

    test("gives the lock that becomes free while it waits", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        for (const timeout of ["1 minute", Number.POSITIVE_INFINITY] as const) {
          const holder = yield* hold(a, "k")
          const scope = yield* ownScope
          const trying = yield* start(Scope.provide(b.run(Lock.tryAcquire("k", { timeout })), scope))
          yield* backend.advance("300 millis")
          yield* holder.release
          const lease = Option.getOrThrow(yield* Fiber.join(trying))
          assert.isTrue(yield* lease.isHeld)
          assert.isFalse(yield* isFree(a, "k"))
          yield* Scope.close(scope, Exit.void)
        }
        assert.isTrue(yield* isFree(a, "k"))
      }))

    test("takes a free lock at once, whatever its timeout, and renews it", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const taken = yield* a.run(Lock.tryAcquire("k", { timeout: "10 seconds", ttl: "500 millis" }))
        yield* backend.advance("1200 millis")
        assert.isTrue(yield* Option.getOrThrow(taken).isHeld)
        assert.isFalse(yield* isFree(b, "k"))
      }))
  })

  describe("interruption", () => {
    const ways: ReadonlyArray<readonly [string, (key: string) => Effect.Effect<unknown, Lock.LockError, Lock.Lock>]> = [
      ["acquire", (key) => Effect.scoped(Lock.acquire(key))],
      ["tryAcquire", (key) => Effect.scoped(Lock.tryAcquire(key, { timeout: "1 minute" }))],
      ["runExclusive", (key) => Lock.runExclusive(key, Effect.void)]
    ]

    for (const [name, way] of ways) {
      test(`interrupting a waiter of ${name} leaves no trace`, (cluster) =>
        Effect.gen(function* () {
          const [a, b, c] = yield* three(cluster)
          const holder = yield* hold(a, "k")
          const doomed = yield* start(b.run(way("k")))
          yield* settle
          const waiter = yield* start(pass(c, "k"))
          const doomed2 = yield* start(b.run(way("k")))
          yield* settle
          yield* within(1, Fiber.interrupt(doomed))
          yield* within(1, Fiber.interrupt(doomed2))
          assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(doomed)))
          yield* holder.release
          yield* Fiber.join(waiter)
          assert.isTrue(yield* isFree(a, "k"))
        }))

      test(`interrupting a waiter of ${name} leaves no trace when it races the grant`, (cluster) =>
        Effect.gen(function* () {
          const [a, b, c] = yield* three(cluster)
          for (let round = 0; round < 24; round++) {
            const holder = yield* hold(a, "k")
            const doomed = yield* start(b.run(way("k")))
            yield* settle
            const yields = (n: number) => Effect.forEach(Array(n), () => Effect.yieldNow, { discard: true })
            const release = Effect.andThen(yields(round % 4), holder.release)
            const interrupt = Effect.andThen(yields((round >> 2) % 3), Fiber.interrupt(doomed))
            const both = round % 2 === 0 ? [release, interrupt] : [interrupt, release]
            yield* Effect.all(both, { concurrency: "unbounded" })
            yield* Fiber.await(doomed)
            yield* within(1, pass(c, "k"))
          }
        }))
    }

    test("interrupting a waiter in the turn that grants it the lock leaves no trace", (cluster) =>
      Effect.gen(function* () {
        const [a, b, c] = yield* three(cluster)
        for (const [, way] of ways) {
          const first = yield* hold(a, "first")
          const second = yield* hold(a, "second")
          const doomed = yield* start(b.run(way("second")))
          yield* settle
          const work = Effect.andThen(
            second.release,
            Effect.sync(() => doomed.interruptUnsafe())
          )
          const racing = yield* start(c.run(Lock.runExclusive("first", work)))
          yield* settle
          yield* first.release
          yield* Fiber.join(racing)
          yield* Fiber.await(doomed)
          yield* within(1, pass(c, "second"))
        }
      }))

    test("interrupting who comes just as the lock is free leaves no trace", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        for (const [, way] of ways) {
          for (let round = 0; round < 6; round++) {
            const doomed = yield* Effect.forkChild(a.run(way("k")))
            for (let i = 0; i < round; i++) yield* Effect.yieldNow
            yield* Fiber.interrupt(doomed)
            yield* within(1, pass(b, "k"))
          }
        }
      }))

    test("a timeout that races the grant leaves either a lease or nothing", (cluster) =>
      Effect.gen(function* () {
        const [a, b, c] = yield* three(cluster)
        for (const late of [-20, 0, 0, 20]) {
          const holder = yield* hold(a, "k")
          const trying = yield* start(Effect.scoped(b.run(Lock.tryAcquire("k", { timeout: "100 millis" }))))
          const releasing = yield* start(Effect.delay(holder.release, 100 + late))
          yield* backend.advance("300 millis")
          yield* waitFor(() => hasEnded(trying) && hasEnded(releasing), "an answer")
          yield* within(1, pass(c, "k"))
        }
      }))

    test("a waiter whose scope closes is as good as interrupted", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const holder = yield* hold(a, "k")
        const scope = yield* Scope.make()
        yield* Effect.forkIn(b.run(Lock.runExclusive("k", Effect.never)), scope, { startImmediately: true })
        yield* settle
        yield* Scope.close(scope, Exit.void)
        yield* holder.release
        assert.isTrue(yield* isFree(a, "k"))
      }))
  })
}
