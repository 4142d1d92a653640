/** How leases are renewed, end, and are lost. */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { Lock } from "../../../index.ts"
import { cut, type Fixture, failsWith, gated, hasEnded, hold, isFree, pass, start } from "./fixture.ts"

export const tests = ({ backend, test, waitFor, within, settle, two, three }: Fixture): void => {
  describe("leases", () => {
    test("a lease is renewed while its holder's scope is open", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const holder = yield* hold(a, "acquired", { ttl: "1500 millis" })
        const work = yield* gated<number>()
        const worker = yield* start(a.run(Lock.runExclusive("run", work.effect, { ttl: "1500 millis" })))
        yield* work.started
        const waiter = yield* start(pass(b, "run"))
        for (let i = 0; i < 8; i++) {
          yield* backend.advance("350 millis")
          assert.isTrue(yield* holder.lease.isHeld)
          assert.isFalse(yield* isFree(b, "acquired"))
          assert.isFalse(hasEnded(waiter))
        }
        yield* work.end(1)
        assert.strictEqual(yield* Fiber.join(worker), 1)
        yield* Fiber.join(waiter)
        yield* holder.release
        assert.isTrue(yield* isFree(b, "acquired"))
      }))

    test("renew: false lets a lease end with its ttl, not earlier", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const { lease } = yield* hold(a, "k", { ttl: "1 second", renew: false })
        const lost = yield* start(lease.lost)
        const waiter = yield* start(hold(b, "k"))
        yield* backend.advance("400 millis")
        assert.isFalse(hasEnded(waiter))
        assert.isTrue(yield* lease.isHeld)
        yield* backend.advance("800 millis")
        yield* waitFor(() => hasEnded(waiter) && hasEnded(lost), "the end of the lease")
        const reason = yield* Fiber.join(lost)
        assert.deepStrictEqual([reason._tag, reason.key, reason.fence], ["LockLost", "k", lease.fence])
        assert.isFalse(yield* lease.isHeld)
        assert.isFalse(yield* isFree(a, "k"))
      }))

    test("an expired lease that nobody waits for is free for the taking", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        yield* hold(a, "k", { ttl: "300 millis", renew: false })
        yield* backend.advance("600 millis")
        assert.isTrue(yield* isFree(b, "k"))
        yield* hold(b, "k")
        assert.isFalse(yield* isFree(a, "k"))
      }))

    test("ttl bounds how long a dead holder blocks the others, and its work is interrupted with LockLost", (cluster) =>
      Effect.gen(function* () {
        const [a, b, c] = yield* three(cluster)
        const work = yield* gated()
        const worker = yield* start(a.run(Lock.runExclusive("k", work.effect, { ttl: "900 millis" })))
        yield* work.started
        let stillRunning = -1
        const next = Effect.sync(() => {
          stillRunning = work.running
        })
        const waiter = yield* start(b.run(Lock.runExclusive("k", next)))
        const second = yield* start(pass(c, "k"))
        yield* settle
        yield* cut(a)
        yield* backend.advance("500 millis")
        assert.isFalse(hasEnded(waiter))
        assert.strictEqual(work.running, 1)
        yield* backend.advance("800 millis")
        yield* within(2, Effect.andThen(Fiber.join(waiter), Fiber.join(second)))
        assert.strictEqual(stillRunning, 0, "the next holder came before the work was stopped")
        assert.strictEqual(work.stopped, 1)
        // The work has stopped; saying so to the caller may wait for the backend's answer to the release.
        const lost = yield* failsWith("LockLost", within(6, Fiber.join(worker)))
        assert.strictEqual(lost._tag === "LockLost" && lost.key, "k")
      }))

    test("lease.lost is the signal for what acquire protects", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const { lease } = yield* hold(a, "k", { ttl: "900 millis" })
        const first = yield* start(lease.lost)
        yield* cut(a)
        yield* backend.advance("500 millis")
        assert.isFalse(hasEnded(first))
        assert.isTrue(yield* lease.isHeld)
        yield* backend.advance("700 millis")
        yield* waitFor(() => hasEnded(first), "the loss")
        assert.strictEqual((yield* Fiber.join(first)).fence, lease.fence)
        assert.strictEqual((yield* lease.lost).key, "k")
        assert.isFalse(yield* lease.isHeld)
      }))

    test("lease.lost never completes for a lease that is released in time", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const holder = yield* hold(a, "k", { ttl: "300 millis" })
        const lost = yield* start(holder.lease.lost)
        yield* holder.release
        yield* backend.advance("800 millis")
        assert.isFalse(hasEnded(lost))
        assert.isFalse(yield* holder.lease.isHeld)
      }))

    test("a short loss of the connection costs no lease", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const work = yield* gated<number>()
        const worker = yield* start(a.run(Lock.runExclusive("k", work.effect, { ttl: "3 seconds" })))
        yield* work.started
        yield* cut(a)
        yield* backend.advance("1500 millis")
        yield* a.reconnect
        yield* backend.advance("3500 millis")
        assert.isFalse(yield* isFree(b, "k"))
        yield* work.end(1)
        assert.strictEqual(yield* Fiber.join(worker), 1)
      }))

    test("extend starts the ttl again, with another length if it says so", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const { lease } = yield* hold(a, "k", { ttl: "800 millis", renew: false })
        yield* backend.advance("500 millis")
        yield* lease.extend()
        yield* backend.advance("500 millis")
        assert.isTrue(yield* lease.isHeld)
        assert.isFalse(yield* isFree(b, "k"))
        yield* lease.extend("2 seconds")
        yield* backend.advance("1500 millis")
        assert.isTrue(yield* lease.isHeld)
        assert.isFalse(yield* isFree(b, "k"))
        yield* backend.advance("800 millis")
        assert.isFalse(yield* lease.isHeld)
        assert.isTrue(yield* isFree(b, "k"))
      }))

    test("extend can shorten a lease, also for those who wait already", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const { lease } = yield* hold(a, "k", { ttl: "1 minute", renew: false })
        const waiter = yield* start(pass(b, "k"))
        yield* settle
        yield* lease.extend("500 millis")
        yield* backend.advance("800 millis")
        yield* within(1, Fiber.join(waiter))
        assert.isFalse(yield* lease.isHeld)
      }))

    test("a late extend fails with LockLost, and takes nothing from the new holder", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = yield* two(cluster)
        const { lease } = yield* hold(a, "k", { ttl: "300 millis", renew: false })
        yield* backend.advance("600 millis")
        yield* failsWith("LockLost", lease.extend())
        const next = yield* hold(b, "k")
        const lost = yield* failsWith("LockLost", lease.extend("1 minute"))
        assert.strictEqual(lost._tag === "LockLost" && lost.fence, lease.fence)
        assert.isTrue(yield* next.lease.isHeld)
        assert.isFalse(yield* isFree(a, "k"))
      }))

    test("extending a lease that was released fails with LockLost, and takes nothing back", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        const holder = yield* hold(a, "k")
        yield* holder.release
        yield* failsWith("LockLost", holder.lease.extend())
        assert.isTrue(yield* isFree(a, "k"))
      }))

    test("releasing a lease that has expired neither fails nor touches the new holder", (cluster) =>
      Effect.gen(function* () {
        const [a, b, c] = yield* three(cluster)
        const expired = yield* hold(a, "k", { ttl: "300 millis", renew: false })
        yield* backend.advance("600 millis")
        const next = yield* hold(b, "k")
        yield* expired.release
        assert.isFalse(yield* isFree(a, "k"))
        assert.isFalse(yield* isFree(c, "k"))
        assert.isTrue(yield* next.lease.isHeld)
        yield* next.release
        assert.isTrue(yield* isFree(c, "k"))
      }))
  })
}
