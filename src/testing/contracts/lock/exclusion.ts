/** One holder, first come first served, with a fence that increases. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import { Lock } from "../../../index.ts"
import { type Fixture, gated, hasEnded, hold, isFree, oddKeys, pass, start } from "./fixture.ts"

export const tests = ({ backend, test, settle, two, three }: Fixture): void => {
  describe("exclusion", () => {
    test("never two holders, on one instance or on many", (cluster) =>
      Effect.gen(function* () {
        const instances = yield* three(cluster)
        let holders = 0
        let runs = 0
        const work = Effect.gen(function* () {
          assert.strictEqual(++holders, 1)
          for (let i = 0; i < 5; i++) yield* Effect.yieldNow
          assert.strictEqual(holders--, 1)
          runs++
        })
        const exclusively = (i: number) => instances[i % 3]!.run(Lock.runExclusive("k", work))
        yield* Effect.forEach(Array.from({ length: 60 }).keys(), exclusively, { concurrency: "unbounded" })
        assert.strictEqual(runs, 60)
      }))

    test("a lock held by acquire keeps tryAcquire, acquire and runExclusive out", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const holder = yield* hold(a, "k")
        for (const instance of [a, b]) {
          assert.isFalse(yield* isFree(instance, "k"))
          const waiting: ReadonlyArray<Fiber.Fiber<unknown, unknown>> = [
            yield* start(hold(instance, "k")),
            yield* start(pass(instance, "k"))
          ]
          yield* backend.advance("300 millis")
          assert.deepStrictEqual(waiting.map(hasEnded), [false, false])
          yield* Fiber.interruptAll(waiting)
        }
        yield* holder.release
        assert.isTrue(yield* isFree(b, "k"))
      }))

    test("keys do not wait for each other, whatever they hold", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const holders = yield* Effect.forEach(oddKeys, (key) => hold(a, key))
        assert.deepStrictEqual(
          holders.map(({ lease }) => lease.key),
          oddKeys
        )
        assert.isTrue(yield* isFree(b, "another"))
        for (const [i, key] of oddKeys.entries()) {
          assert.isFalse(yield* isFree(b, key), key.slice(0, 20))
          yield* holders[i]!.release
          assert.isTrue(yield* isFree(b, key), key.slice(0, 20))
        }
      }))

    test("two apps on one backend do not see each other, whatever their names", (cluster) =>
      Effect.gen(function* () {
        for (const [app, key] of [
          ["shop", "k"],
          ["blog", "k"],
          ["shop:lock", "k"],
          ["shop", "lock:k"],
          ["shop%3Alock", "k"],
          ["*", "k"],
          ["shop", "*"]
        ] as const) {
          const instance = yield* cluster.instance({ app })
          assert.isTrue(yield* isFree(instance, key), `${app} | ${key}`)
          yield* hold(instance, key)
        }
      }))

    test("runExclusive gives what the work gives, which may be a function of the lease", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        assert.strictEqual(yield* a.run(Lock.runExclusive("k", Effect.succeed(1))), 1)
        const work = (lease: Lock.Lease) =>
          Effect.gen(function* () {
            assert.strictEqual(lease.key, "k")
            assert.isTrue(yield* lease.isHeld)
            assert.isFalse(yield* isFree(b, "k"))
            return lease
          })
        const lease = yield* a.run(Lock.runExclusive("k", work))
        assert.isFalse(yield* lease.isHeld)
        assert.isTrue(yield* isFree(b, "k"))
      }))
  })

  describe("order", () => {
    test("first come, first served across instances, however they ask", (cluster) =>
      Effect.gen(function* () {
        const instances = yield* three(cluster)
        const holder = yield* hold(instances[0], "k")
        const served: Array<number> = []
        const serve = (i: number) => Effect.sync(() => served.push(i))
        const ways: ReadonlyArray<(i: number) => Effect.Effect<unknown, Lock.LockError, Lock.Lock>> = [
          (i) => Lock.runExclusive("k", serve(i)),
          (i) => Effect.scoped(Effect.andThen(Lock.acquire("k"), serve(i))),
          (i) => Effect.scoped(Effect.andThen(Lock.tryAcquire("k", { timeout: "1 minute" }), serve(i)))
        ]
        const waiters: Array<Fiber.Fiber<unknown, unknown>> = []
        for (let i = 0; i < 12; i++) {
          waiters.push(yield* start(instances[(i * 2) % 3]!.run(ways[(i >> 1) % 3]!(i))))
          yield* settle
        }
        yield* holder.release
        yield* Effect.forEach(waiters, Fiber.join)
        assert.deepStrictEqual(served, [...Array(12).keys()])
      }))

    test("nobody overtakes those who wait", (cluster) =>
      Effect.gen(function* () {
        const [a, b, c] = yield* three(cluster)
        const holder = yield* hold(a, "k")
        const work = yield* gated()
        const waiter = yield* start(b.run(Lock.runExclusive("k", work.effect)))
        yield* settle
        yield* holder.release
        const late = yield* start(pass(c, "k"))
        assert.isFalse(yield* isFree(a, "k"))
        yield* work.started
        assert.isFalse(hasEnded(late))
        yield* work.end()
        yield* Fiber.join(waiter)
        yield* Fiber.join(late)
      }))

    test("waiters are woken: no time passes between a release and the next grant", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const holder = yield* hold(a, "k")
        const waiters = [yield* start(pass(b, "k")), yield* start(pass(a, "k")), yield* start(pass(b, "k"))]
        yield* settle
        const released = performance.now()
        yield* holder.release
        yield* Effect.forEach(waiters, Fiber.join)
        assert.isBelow(performance.now() - released, 500)
      }))
  })

  describe("fences", () => {
    test("strictly increase per key over every grant, whoever gets it and however", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const fences: Array<number> = []
        for (let round = 0; round < 3; round++) {
          fences.push(yield* pass(a, "k"))
          const holder = yield* hold(b, "k")
          fences.push(holder.lease.fence)
          const waiters = [yield* start(pass(a, "k")), yield* start(pass(b, "k"))]
          yield* settle
          yield* holder.release
          yield* Effect.forEach(waiters, Fiber.join)
          const tried = yield* Effect.scoped(a.run(Lock.tryAcquire("k")))
          fences.push(Option.getOrThrow(tried).fence)
          // A holder that lets it expire, and one that is restarted.
          fences.push((yield* hold(b, "k", { ttl: "100 millis", renew: false })).lease.fence)
          yield* backend.advance("300 millis")
          const restarted = yield* cluster.instance()
          fences.push(yield* pass(restarted, "k"))
          yield* restarted.close
        }
        assert.deepStrictEqual(
          fences,
          [...new Set(fences)].sort((x, y) => x - y)
        )
        for (const fence of fences) assert.isTrue(Number.isSafeInteger(fence) && fence > 0)
      }))
  })
}
