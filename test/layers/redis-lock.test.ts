import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import { Redis } from "ioredis"
import { Instance, LockStore } from "../../src/index.ts"
import { RedisConnection, RedisLockStore, type RedisOptions } from "../../src/layers/redis/index.ts"
import { suite } from "../../src/testing/contracts/lock.ts"
import * as RedisCluster from "../servers/RedisCluster.ts"
import * as RedisServer from "../servers/RedisServer.ts"
import { redis } from "./redis.ts"

suite(redis, { propertyRuns: 40 })

/** A store on a connection of its own. */
const storeOn = (options: RedisOptions.RedisOptions) =>
  Effect.flatMap(
    Layer.build(
      Layer.provide(RedisLockStore.layer, [
        RedisConnection.layer({ timeout: "1 second", ...options }),
        Instance.layer()
      ])
    ),
    (context) => Effect.provide(LockStore.LockStore.use(Effect.succeed), context)
  )

const clientOf = (url: string) =>
  Effect.acquireRelease(
    Effect.sync(() => new Redis(url)),
    (client) => Effect.sync(() => client.disconnect())
  )

const until = (condition: () => Promise<boolean>, what: string) =>
  Effect.promise(() => RedisServer.waitUntil(condition, () => `never happened: ${what}`))

const hour = 3_600_000

describe.concurrent("Lock on Redis, seen from inside", () => {
  const inside = Effect.gen(function* () {
    const server = yield* RedisServer.make({ appendOnly: false })
    const client = yield* clientOf(server.url)
    const [a, b] = [yield* storeOn({ url: server.url }), yield* storeOn({ url: server.url })]
    const line = () => client.lrange("cohort:{lock:s:k}:q", 0, -1)
    /** Asks for the lock, and waits in line. */
    const wait = (store: LockStore.LockStore["Service"], place: number) =>
      Effect.gen(function* () {
        const fiber = yield* Effect.forkChild(store.acquire("s", "k", 30_000), { startImmediately: true })
        yield* until(async () => (await line()).length === place, `place ${place} in line`)
        return fiber
      })
    return { a, b, client, line, server, wait }
  })

  it.live("when Redis is full, a lock that is held is renewed, passed on and released", () =>
    Effect.gen(function* () {
      const { a, b, client, wait } = yield* inside
      const first = yield* a.acquire("s", "k", 30_000)
      const other = yield* a.acquire("s", "other", 30_000)
      const waiter = yield* wait(b, 1)
      yield* Effect.promise(() => client.config("SET", "maxmemory", "1mb"))
      const refused = yield* Effect.exit(b.tryAcquire("s", "more", 30_000))
      assert.include(String(refused), "OOM")
      assert.isTrue(yield* a.renew(first, 30_000))
      yield* a.release(first)
      const second = yield* Fiber.join(waiter)
      yield* b.release(second)
      assert.isTrue(yield* a.renew(other, 30_000))
      yield* a.release(other)
      yield* Effect.promise(() => client.config("SET", "maxmemory", "0"))
      for (const key of ["k", "other"]) assert.isDefined(yield* b.tryAcquire("s", key, 30_000))
    })
  )

  it.live("a lock leaves its last fence, for an hour, and nothing else", () =>
    Effect.gen(function* () {
      const { a, b, client, wait } = yield* inside
      const first = yield* a.acquire("s", "k", 30_000)
      const waiters = [yield* wait(b, 1), yield* wait(a, 2), yield* wait(b, 3)]
      yield* Fiber.interrupt(waiters[1]!)
      yield* a.release(first)
      yield* b.release(yield* Fiber.join(waiters[0]!))
      yield* b.release(yield* Fiber.join(waiters[2]!))
      for (let i = 0; i < 100; i++) {
        const grant = yield* a.tryAcquire("s", `once ${i}`, 30_000)
        yield* a.release(grant!)
      }
      const keys = yield* Effect.promise(() => client.keys("*"))
      assert.lengthOf(keys, 101)
      for (const key of keys) assert.isAtMost(yield* Effect.promise(() => client.pttl(key)), hour)
    })
  )

  it.live("a lock that nobody waits for costs two commands", () =>
    Effect.gen(function* () {
      const { a, client } = yield* inside
      yield* a.release(yield* a.acquire("s", "k", 30_000))
      const calls = async () => {
        const stats = await client.info("commandstats")
        return [...stats.matchAll(/cmdstat_(eval|evalsha|publish|subscribe):calls=(\d+)/g)].map(([, , n]) => Number(n))
      }
      const sum = (counts: ReadonlyArray<number>) => counts.reduce((sum, count) => sum + count, 0)
      const before = sum(yield* Effect.promise(calls))
      for (let i = 0; i < 10; i++) yield* a.release(yield* a.acquire("s", "k", 30_000))
      assert.strictEqual(sum(yield* Effect.promise(calls)) - before, 20)
    })
  )

  it.live("a grant that is told late, when its waiter has been told to wait again, is none", () =>
    Effect.gen(function* () {
      const { a, b, client, line, wait } = yield* inside
      const holder = yield* a.acquire("s", "k", 30_000)
      const waiter = yield* wait(b, 1)
      const [id] = yield* Effect.promise(line)
      const [channel] = (yield* Effect.promise(() => client.hvals("cohort:{lock:s:k}:w")))[0]!.split(" ").slice(2)
      for (const fence of [1, holder.fence - 1, holder.fence]) {
        assert.strictEqual(yield* Effect.promise(() => client.publish(channel!, `${id} ${fence}`)), 1)
      }
      // Heard, and answered.
      yield* Effect.promise(() => client.publish(channel!, id!))
      yield* Effect.sleep("100 millis")
      assert.isUndefined(waiter.pollUnsafe())
      yield* a.release(holder)
      assert.isAbove((yield* Fiber.join(waiter)).fence, holder.fence)
    })
  )

  it.live("waiters whose line was evicted are served all the same", () =>
    Effect.gen(function* () {
      const { a, b, client, wait } = yield* inside
      for (const evicted of ["q", "w"]) {
        const holder = yield* a.acquire("s", "k", 30_000)
        const waiter = yield* wait(b, 1)
        yield* Effect.promise(() => client.del(`cohort:{lock:s:k}:${evicted}`))
        yield* a.release(holder)
        yield* b.release(yield* Fiber.join(waiter))
      }
      assert.isDefined(yield* a.tryAcquire("s", "k", 30_000))
    })
  )

  it.live("fences increase when the clock of Redis is set back", () =>
    Effect.gen(function* () {
      const { a, client } = yield* inside
      const future = Date.now() * 1_000 + 600_000_000
      yield* Effect.promise(() => client.set("cohort:{lock:s:k}", `${future} 0 `, "PX", hour))
      for (const expected of [future + 1, future + 2]) {
        const grant = yield* a.acquire("s", "k", 30_000)
        assert.strictEqual(grant.fence, expected)
        yield* a.release(grant)
      }
    })
  )

  it.live("who asks when Redis was never there fails within the timeout, also when many ask", () =>
    Effect.gen(function* () {
      const server = yield* RedisServer.make({ appendOnly: false })
      yield* server.kill
      const store = yield* storeOn({ url: server.url, lazy: true })
      const begin = performance.now()
      const asking = Array.from({ length: 20 }, (_, i) => Effect.flip(store.acquire("s", `${i % 3}`, 30_000)))
      for (const error of yield* Effect.all(asking, { concurrency: "unbounded" })) {
        assert.strictEqual(error._tag, "Unavailable")
      }
      // One after the other they would take 20 seconds.
      assert.isBelow(performance.now() - begin, 8_000)
      yield* server.start
      yield* store.release(yield* store.acquire("s", "k", 30_000))
    })
  )

  it.live("who asks or waits when its store is closed fails, and is in nobody's way", () =>
    Effect.gen(function* () {
      const { a, server, wait } = yield* inside
      const holder = yield* a.acquire("s", "k", 30_000)
      const closed = Effect.gen(function* () {
        const store = yield* storeOn({ url: server.url })
        const waiting = yield* wait(store, 1)
        // Granted on the way out.
        const asking = yield* Effect.forkChild(store.acquire("s", "free", 30_000), { startImmediately: true })
        return [waiting, asking]
      })
      for (const fiber of yield* Effect.scoped(closed)) {
        assert.strictEqual((yield* Effect.flip(Fiber.join(fiber)))._tag, "Unavailable")
      }
      yield* a.release(holder)
      assert.isDefined(yield* a.tryAcquire("s", "k", 30_000))
      assert.isDefined(yield* a.tryAcquire("s", "free", 30_000))
    })
  )
})

describe("Lock on a Redis Cluster", () => {
  it.live("is handed from node to node's clients, whatever its key, without CROSSSLOT", () =>
    Effect.gen(function* () {
      const { nodes } = yield* RedisCluster.shared
      const options = {
        cluster: { nodes: nodes.map(({ port }) => ({ host: "127.0.0.1", port })) },
        timeout: "5 seconds"
      } as const
      const stores = [yield* storeOn(options), yield* storeOn(options), yield* storeOn(options)]
      const keys = ["plain", "{x}", "}{", "a{b}c", "*[c]\\?", "\ud800", "x".repeat(10_000)]
      const passOn = (key: string) =>
        Effect.gen(function* () {
          const served: Array<number> = []
          const serve = (i: number) =>
            Effect.flatMap(stores[i % 3]!.acquire("app:{lock}", key, 30_000), (grant) => {
              served.push(grant.fence)
              return stores[i % 3]!.release(grant)
            })
          yield* Effect.forEach(Array(12).keys(), serve, { concurrency: "unbounded" })
          assert.lengthOf(served, 12)
          for (let i = 1; i < served.length; i++) assert.isAbove(served[i]!, served[i - 1]!)
        })
      yield* Effect.forEach(keys, passOn, { concurrency: "unbounded" })
    })
  )
})
