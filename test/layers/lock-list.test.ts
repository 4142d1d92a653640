/** What `Lock.list` tells, on every backend. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { Lock, type LockStore } from "../../src/index.ts"
import { AmqpLockStore } from "../../src/layers/amqp/index.ts"
import { describeOn, support } from "../../src/testing/contracts/support.ts"
import { amqpPart } from "./amqp.ts"
import { memory } from "./memory.ts"
import { redis } from "./redis.ts"

for (const backend of [memory, redis, amqpPart(AmqpLockStore.layer, { delays: false })]) {
  describeOn(backend, "Lock.list", () => {
    const { test, waitFor } = support(backend)

    test("has the locks of all instances, with fence, time left and waiters", (cluster) =>
      Effect.gen(function* () {
        const [a, b] = [yield* cluster.instance(), yield* cluster.instance()]
        const other = yield* cluster.instance({ app: "another*" })
        assert.deepStrictEqual(yield* a.run(Lock.list), [])
        const odd = "{*}:q [\n] é🎉"
        const leases = [
          yield* a.run(Lock.acquire("plain", { ttl: "1 minute" })),
          yield* b.run(Lock.acquire(odd, { ttl: "1 hour" }))
        ]
        yield* other.run(Lock.acquire("elsewhere"))
        yield* Effect.scoped(a.run(Lock.acquire("released")))
        yield* Effect.forEach([a, b], ({ run }) => Effect.forkScoped(Effect.scoped(run(Lock.acquire("plain")))))
        let found: ReadonlyArray<LockStore.HeldLock> = []
        const list = () => a.run(Lock.list)
        yield* Effect.forkScoped(
          Effect.forever(
            Effect.andThen(
              Effect.map(list(), (locks) => (found = locks)),
              backend.advance("100 millis")
            )
          )
        )
        yield* waitFor(() => found.find(({ key }) => key === "plain")?.waiters === 2, "both wait")
        assert.deepStrictEqual(
          found.map(({ fence, key, waiters }) => ({ key, fence, waiters })),
          [
            { key: "plain", fence: leases[0]!.fence, waiters: 2 },
            { key: odd, fence: leases[1]!.fence, waiters: 0 }
          ]
        )
        const [plain, long] = found
        // What is left is of a ttl and a little more.
        assert.isTrue(plain!.ttl > 0 && plain!.ttl < 70_000, `${plain!.ttl} ms`)
        assert.isTrue(long!.ttl > 70_000 && long!.ttl < 3_700_000, `${long!.ttl} ms`)
      }))

    test("fails within the bound while the backend is away", (cluster) =>
      Effect.gen(function* () {
        const a = yield* cluster.instance()
        yield* Effect.addFinalizer(() => a.reconnect)
        yield* a.disconnect
        const failing = yield* Effect.forkScoped(Effect.flip(a.run(Lock.list)))
        yield* waitFor(() => failing.pollUnsafe() !== undefined, "it fails")
        const error = yield* Fiber.join(failing)
        assert.strictEqual(error.reason._tag, "Unavailable")
      }))
  })
}
