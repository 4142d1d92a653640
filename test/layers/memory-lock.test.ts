import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Scope from "effect/Scope"
import { TestClock } from "effect/testing"
import { Cohort, Lock, LockStore } from "../../src/index.ts"
import { MemoryHub, MemoryLockStore } from "../../src/layers/memory/index.ts"
import { getOrMake } from "../../src/services/internal/getOrMake.ts"
import { onMemory } from "../../src/testing/contracts/Backend.ts"
import { suite } from "../../src/testing/contracts/lock.ts"
import { memory } from "./memory.ts"

suite(memory)

/** A store need not offer `request`: the contract holds without. */
const withoutRequest = Layer.effect(
  LockStore.LockStore,
  Effect.map(MemoryLockStore.make, ({ request: _, ...store }) => store)
)
suite(onMemory({ name: "a store without `request`", stores: withoutRequest }))

/** Two instances on a hub, and what the hub keeps for locks. */
const cluster = Effect.gen(function* () {
  const hub = yield* MemoryHub.make
  const instance = (id: string) => Layer.build(Cohort.layerMemory({ hub, id }))
  const [a, b] = [yield* instance("a"), yield* instance("b")]
  const { spaces } = hub.part("lock", (): { readonly spaces: Map<string, ReadonlyMap<string, unknown>> } =>
    assert.fail()
  )
  const entries = getOrMake(spaces, "app:lock", () => new Map())
  return { hub, a, b, entries }
})

const keys = Array.from({ length: 10_000 }, (_, i) => `key ${i}`)

describe("Lock on memory, seen from inside", () => {
  it.effect("10,000 keys used once leave nothing behind", () =>
    Effect.gen(function* () {
      const { a, b, entries } = yield* cluster
      for (const key of keys) {
        yield* Effect.provide(Lock.runExclusive(key, Effect.void), a)
        yield* Effect.provide(Effect.scoped(Lock.tryAcquire(key)), b)
        yield* Effect.provide(Effect.scoped(Lock.acquire(key, { ttl: "1 second" })), a)
      }
      assert.strictEqual(entries.size, 0)
    })
  )

  it.effect("10,000 keys leave nothing behind when waiters came, went and were served", () =>
    Effect.gen(function* () {
      const { a, b, entries } = yield* cluster
      const scope = yield* Scope.make()
      yield* Effect.forEach(keys, (key) => Lock.acquire(key)).pipe(Effect.provide(a), Scope.provide(scope))
      const served = keys.map((key) => Lock.runExclusive(key, Effect.void))
      const gone = keys.map((key) => Effect.scoped(Lock.tryAcquire(key, { timeout: "1 second" })))
      const all = Effect.all([...served, ...gone], { concurrency: "unbounded", discard: true })
      const fiber = yield* Effect.forkChild(Effect.provide(all, b), { startImmediately: true })
      yield* TestClock.adjust("2 seconds")
      assert.strictEqual(entries.size, keys.length)
      yield* Scope.close(scope, Exit.void)
      yield* Fiber.join(fiber)
      assert.strictEqual(entries.size, 0)
    })
  )

  it.effect("keys of a holder that was cut off leave nothing behind once their ttl has passed", () =>
    Effect.gen(function* () {
      const { a, b, entries, hub } = yield* cluster
      const scope = yield* Scope.make("parallel")
      const held = keys.slice(0, 100)
      const waited = keys.slice(100, 200)
      yield* Effect.forEach(held, (key) => Lock.acquire(key)).pipe(Effect.provide(a), Scope.provide(scope))
      const other = yield* Scope.make("parallel")
      yield* Effect.forEach(waited, (key) => Lock.acquire(key)).pipe(Effect.provide(b), Scope.provide(other))
      const waiting = Effect.forEach(waited, (key) => Lock.runExclusive(key, Effect.void), { concurrency: "unbounded" })
      const fiber = yield* Effect.forkChild(Effect.provide(waiting, a), { startImmediately: true })
      yield* hub.disconnect("a")
      yield* Scope.close(other, Exit.void)
      yield* Effect.forkChild(Scope.close(scope, Exit.void), { startImmediately: true })
      yield* TestClock.adjust("10 seconds")
      assert.strictEqual(entries.size, 200)
      assert.isTrue(Exit.isFailure(yield* Fiber.await(fiber)))
      yield* TestClock.adjust("25 seconds")
      assert.strictEqual(entries.size, 0)
    })
  )

  it.effect("a lease lives for 30 seconds by default, and is renewed at a third of its ttl", () =>
    Effect.gen(function* () {
      const { a, b, hub } = yield* cluster
      const scope = yield* Scope.make()
      const isFree = Effect.map(Effect.scoped(Lock.tryAcquire("k")), Option.isSome).pipe(Effect.provide(b))
      const lease = yield* Lock.acquire("k").pipe(Effect.provide(a), Scope.provide(scope))
      yield* TestClock.adjust("10 seconds")
      yield* hub.disconnect("a")
      yield* TestClock.adjust("29900 millis")
      assert.isTrue(yield* lease.isHeld)
      assert.isFalse(yield* isFree)
      yield* TestClock.adjust("200 millis")
      assert.isFalse(yield* lease.isHeld)
      assert.isTrue(yield* isFree)
    })
  )

  it.effect("fences increase across a hub that was lost", () =>
    Effect.gen(function* () {
      const fenceOn = (hub: MemoryHub.MemoryHub["Service"]) =>
        Lock.runExclusive("k", ({ fence }) => Effect.succeed(fence)).pipe(Effect.provide(Cohort.layerMemory({ hub })))
      const before = yield* MemoryHub.make
      yield* fenceOn(before)
      const last = yield* fenceOn(before)
      yield* TestClock.adjust("1 second")
      assert.isAbove(yield* fenceOn(yield* MemoryHub.make), last)
    })
  )

  it.live("callers who keep handing a lock to each other leave the rest of the process its turn", () =>
    Effect.gen(function* () {
      const { a } = yield* cluster
      let stop = false
      let handovers = 0
      const held = yield* Latch.make()
      const queued = Effect.gen(function* () {
        const lock = yield* Lock.Lock
        const count = Effect.sync(() => handovers++)
        while (!stop) yield* lock.runExclusive("k", count)
      })
      yield* Effect.forkChild(Effect.provide(Lock.runExclusive("k", held.await), a), { startImmediately: true })
      const fibers = yield* Effect.forEach([1, 2, 3], () =>
        Effect.forkChild(Effect.provide(queued, a), { startImmediately: true })
      )
      yield* held.open
      // Only a turn of the event loop can wake this.
      yield* Effect.sleep("20 millis")
      stop = true
      yield* Fiber.joinAll(fibers)
      assert.isAbove(handovers, 3)
    })
  )
})
