/** Work that runs under a lock. */
import { assert, describe } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { Lock } from "../../../index.ts"
import { eventually } from "../support.ts"
import { type Fixture, failsWith, gated, hold, isFree, pass, start } from "./fixture.ts"

export const tests = ({ backend, test, within, settle, two }: Fixture): void => {
  describe("work", () => {
    test("that fails, dies, throws or interrupts itself releases, and its exit comes through", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const thrown = new Error("thrown")
        const fail: Effect.Effect<void, string> = Effect.fail("no")
        const works: ReadonlyArray<readonly [string, () => Effect.Effect<void, string>, Exit.Exit<void, string>]> = [
          ["fails", () => fail, Exit.fail("no")],
          ["dies", () => Effect.die(thrown), Exit.die(thrown)],
          [
            "throws",
            () => {
              throw thrown
            },
            Exit.die(thrown)
          ],
          ["fails later", () => Effect.andThen(Effect.yieldNow, fail), Exit.fail("no")],
          ["dies later", () => Effect.andThen(Effect.yieldNow, Effect.die(thrown)), Exit.die(thrown)]
        ]
        for (const [how, work, expected] of works) {
          assert.deepStrictEqual(yield* Effect.exit(a.run(Lock.runExclusive("k", work))), expected, how)
          assert.isTrue(yield* isFree(b, "k"), how)
          const scoped = Effect.scoped(Effect.andThen(Lock.acquire("k"), Effect.suspend(work)))
          assert.deepStrictEqual(yield* Effect.exit(a.run(scoped)), expected, how)
          assert.isTrue(yield* isFree(b, "k"), how)
        }
        for (const work of [Effect.interrupt, Effect.andThen(Effect.yieldNow, Effect.interrupt)]) {
          const exit = yield* Fiber.await(yield* start(a.run(Lock.runExclusive("k", work))))
          assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
          assert.isTrue(yield* isFree(b, "k"))
        }
      }))

    test("that is interrupted has stopped before the next holder comes", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const work = yield* gated()
        let cleaned = false
        const cleaning = Effect.onInterrupt(work.effect, () =>
          Effect.andThen(
            Effect.yieldNow,
            Effect.sync(() => {
              cleaned = true
            })
          )
        )
        const worker = yield* start(a.run(Lock.runExclusive("k", cleaning)))
        yield* work.started
        const waiter = yield* start(
          b.run(
            Lock.runExclusive(
              "k",
              Effect.sync(() => cleaned)
            )
          )
        )
        yield* settle
        const exit = yield* Effect.andThen(Fiber.interrupt(worker), Fiber.await(worker))
        assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
        assert.isTrue(yield* Fiber.join(waiter))
      }))

    test("that never returns ends when its caller is interrupted", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const worker = yield* start(a.run(Lock.runExclusive("k", Effect.never)))
        yield* settle
        yield* within(1, Fiber.interrupt(worker))
        assert.isTrue(yield* isFree(b, "k"))
      }))

    test("in an uninterruptible caller is not interrupted, and nor is its waiting", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const work = yield* gated<number>()
        const holder = yield* hold(b, "k")
        const worker = yield* start(Effect.uninterruptible(a.run(Lock.runExclusive("k", work.effect))))
        yield* settle
        worker.interruptUnsafe()
        yield* settle
        yield* holder.release
        yield* work.started
        yield* settle
        assert.strictEqual(work.running, 1)
        yield* work.end(1)
        yield* Fiber.await(worker)
        assert.strictEqual(work.stopped, 0)
        assert.isTrue(yield* isFree(b, "k"))
      }))

    test("that ignores interruption keeps the lock until it ends, but not its caller", (cluster, logs) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const work = yield* gated()
        const stubborn = Effect.uninterruptible(work.effect)
        const worker = yield* start(a.run(Lock.runExclusive("k", stubborn, { ttl: "1 second" })))
        yield* work.started
        yield* within(6, Fiber.interrupt(worker))
        assert.isTrue(logs.some(({ level, message }) => level === "WARN" && String(message).includes("left behind")))
        assert.strictEqual(work.running, 1)
        assert.isFalse(yield* isFree(b, "k"))
        yield* work.end()
        yield* eventually(backend, isFree(b, "k"), "the release")
      }))

    test("that ignores losing its lease is not taken for done", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const work = yield* gated()
        const stubborn = Effect.uninterruptible(work.effect)
        const options = { ttl: "300 millis", renew: false } as const
        const worker = yield* start(a.run(Lock.runExclusive("k", stubborn, options)))
        yield* work.started
        const waiter = yield* start(pass(b, "k"))
        yield* backend.advance("600 millis")
        yield* within(1, Fiber.join(waiter))
        yield* work.end()
        yield* failsWith("LockLost", within(6, Fiber.join(worker)))
      }))

    test("that ends in the moment it is told is protected to its end", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const options = { ttl: "500 millis", renew: false } as const
        const inTime = a.run(Lock.runExclusive("k", Effect.delay(Effect.succeed(1), "200 millis"), options))
        assert.strictEqual(yield* within(2, inTime), 1)
        const tooLate = a.run(Lock.runExclusive("k", Effect.delay(Effect.succeed(1), "1 second"), options))
        yield* failsWith("LockLost", within(2, tooLate))
      }))
  })
}
