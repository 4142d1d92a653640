/** One process of a test: wraps the key it is told, as often as it is told. `node redis-cache-worker.ts <redis url>` */
import { createInterface } from "node:readline"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Schema from "effect/Schema"
import { Cache, Instance, Lock } from "../../src/index.ts"
import { RedisCacheStore, RedisConnection, RedisLockStore } from "../../src/layers/redis/index.ts"

const runtime = ManagedRuntime.make(
  Layer.mergeAll(Cache.layer, Lock.layer).pipe(
    Layer.provide([RedisCacheStore.layer, RedisLockStore.layer]),
    Layer.provideMerge(RedisConnection.layer({ url: process.argv[2]! })),
    Layer.provideMerge(Instance.layer({ app: "workers" }))
  )
)

const redis = await runtime.runPromise(RedisConnection.RedisConnection)
const cache = await runtime.runPromise(Cache.make("numbers", Schema.Number))
const load = Effect.delay(Effect.map(redis.send<number>("incr", ["loads"]), Number), "100 millis")

console.log("ready")
for await (const line of createInterface({ input: process.stdin })) {
  const { callers, key } = JSON.parse(line) as { readonly callers: number; readonly key: string }
  const wraps = Array.from({ length: callers }, () => cache.wrap(key, load, { exclusive: true, ttl: "1 minute" }))
  const values = await runtime.runPromise(Effect.all(wraps, { concurrency: "unbounded" }))
  console.log(`${values.length} times ${[...new Set(values)].join(" and ")}`)
}
