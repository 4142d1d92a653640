/** What `Lock` promises above any store, on stores that do what real ones do at their worst. */
import { assert, describe, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import { TestClock } from "effect/testing"
import { Instance, Lock, LockStore, Reason } from "../../src/index.ts"

const monotonic = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1e6)

/** A store that grants whatever is asked, `late` milliseconds after it was sent. */
const lockOn = (store: Partial<LockStore.LockStore["Service"]>, late = 0) => {
  let fence = 0
  const grant = (key: string) =>
    Effect.gen(function* () {
      const since = yield* monotonic
      yield* Effect.sleep(late)
      return { key, fence: ++fence, since }
    })
  const released: Array<number> = []
  const layer = Layer.succeed(LockStore.LockStore, {
    system: "stub",
    tryAcquire: grant,
    acquire: grant,
    renew: () => Effect.succeed(true),
    release: ({ fence }) => Effect.sync(() => void released.push(fence)),
    ...store
  })
  return { released, layer: Lock.layer.pipe(Layer.provide([layer, Instance.layer({ id: "a" })])) }
}

const lossOf = <A, E>(exit: Exit.Exit<A, E>) =>
  Effect.map(Effect.flip(exit), (error) => {
    assert.instanceOf(error, Lock.LockError)
    assert.strictEqual(error.reason._tag, "LockLost")
  })

describe("Lock above its store", () => {
  it.effect("runExclusive fails with LockLost, and its work is interrupted, as soon as a renewal is refused", () => {
    const { layer, released } = lockOn({ renew: () => Effect.succeed(false) })
    return Effect.gen(function* () {
      let stopped = false
      const work = Effect.onInterrupt(Effect.never, () =>
        Effect.sync(() => {
          stopped = true
        })
      )
      const fiber = yield* Effect.forkChild(Lock.runExclusive("k", work, { ttl: "9 seconds" }), {
        startImmediately: true
      })
      yield* TestClock.adjust("2900 millis")
      assert.isFalse(stopped)
      yield* TestClock.adjust("100 millis")
      assert.isTrue(stopped)
      yield* lossOf(yield* Fiber.await(fiber))
      // Told to the store all the same: it ignores a grant that is over, and may hold one that is not.
      assert.deepStrictEqual(released, [1])
    }).pipe(Effect.provide(layer))
  })

  it.effect("the deadline counts from before the request was sent", () => {
    const { layer } = lockOn({}, 2_000)
    return Effect.gen(function* () {
      const options = { ttl: "3 seconds", renew: false } as const
      const fiber = yield* Effect.forkChild(Effect.exit(Lock.runExclusive("k", Effect.never, options)))
      yield* TestClock.adjust("2900 millis")
      assert.isUndefined(fiber.pollUnsafe())
      yield* TestClock.adjust("200 millis")
      yield* lossOf(yield* Fiber.join(fiber))
    }).pipe(Effect.provide(layer))
  })

  it.effect("the deadline counts from before the renewal was sent", () => {
    const { layer } = lockOn({ renew: () => Effect.as(Effect.sleep("1900 millis"), true) })
    return Effect.scoped(
      Effect.gen(function* () {
        const lease = yield* Lock.acquire("k", { ttl: "2 seconds", renew: false })
        const extending = yield* Effect.forkChild(lease.extend(), { startImmediately: true })
        yield* TestClock.adjust("1900 millis")
        yield* Fiber.join(extending)
        yield* TestClock.adjust("99 millis")
        assert.isTrue(yield* lease.isHeld)
        yield* TestClock.adjust("1 millis")
        assert.isFalse(yield* lease.isHeld)
      })
    ).pipe(Effect.provide(layer))
  })

  it.effect("a renewal that does not arrive is tried again until the deadline", () => {
    let asked = 0
    const renew = () =>
      Effect.suspend(() =>
        ++asked % 3 === 0
          ? Effect.succeed(true)
          : Effect.fail(new Reason.Unavailable({ backend: "stub", detail: "away" }))
      )
    const { layer } = lockOn({ renew })
    return Effect.scoped(
      Effect.gen(function* () {
        const lease = yield* Lock.acquire("k", { ttl: "3 seconds" })
        yield* TestClock.adjust("1 minute")
        assert.isTrue(yield* lease.isHeld)
        assert.isAbove(asked, 60)
      })
    ).pipe(Effect.provide(layer))
  })

  it.effect("work whose end comes after the deadline does not pass for protected", () => {
    const { layer } = lockOn({}, 5_000)
    return Effect.gen(function* () {
      const fiber = yield* Effect.forkChild(
        Effect.exit(Lock.runExclusive("k", Effect.succeed(1), { ttl: "3 seconds" }))
      )
      yield* TestClock.adjust("5 seconds")
      yield* lossOf(yield* Fiber.join(fiber))
    }).pipe(Effect.provide(layer))
  })

  it.effect("a release that fails is logged, and fails nobody", () => {
    const release = () => Effect.fail(new Reason.Unavailable({ backend: "stub", detail: "away" }))
    const { layer } = lockOn({ release })
    const logs: Array<unknown> = []
    const logger = Logger.map(Logger.formatStructured, ({ annotations, level }) => logs.push({ annotations, level }))
    return Effect.gen(function* () {
      assert.strictEqual(yield* Lock.runExclusive("k", Effect.succeed(1)), 1)
      yield* Effect.scoped(Lock.acquire("k"))
      const logged = (fence: number) => ({ level: "WARN", annotations: { lock: "k", fence, instance: "a" } })
      assert.deepStrictEqual(logs, [logged(1), logged(2)])
    }).pipe(Effect.provide(layer), Effect.provide(Logger.layer([logger])))
  })
})
