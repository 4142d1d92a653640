import { assert, describe, it } from "@effect/vitest"
import { connect } from "amqplib"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import { CacheStore, Instance, LockStore } from "../../src/index.ts"
import * as AmqpCacheStore from "../../src/layers/amqp/AmqpCacheStore.ts"
import * as AmqpLockStore from "../../src/layers/amqp/AmqpLockStore.ts"
import { AmqpConnection } from "../../src/layers/amqp/index.ts"
import * as Log from "../../src/layers/amqp/log/ReplicatedLog.ts"
import { Payload } from "../../src/services/Payload.ts"
import { suite } from "../../src/testing/contracts/lock.ts"
import * as RabbitServer from "../servers/RabbitServer.ts"
import { amqpPart } from "./amqp.ts"

suite(amqpPart(AmqpLockStore.layer, { delays: false }), { propertyRuns: 40 })

/** The stores of one instance, on connections of its own. */
const storesOn = (url: string, app: string, options: Log.Options = {}) =>
  Effect.map(
    Layer.build(
      Layer.mergeAll(AmqpCacheStore.layerOnLog({ reads: "latest" }), AmqpLockStore.layerOnLog()).pipe(
        Layer.provide(Log.layerWith(options)),
        Layer.provide([AmqpConnection.layer({ url, timeout: "4 seconds" }), Instance.layer({ app })])
      )
    ),
    (context) => ({
      lock: Context.get(context, LockStore.LockStore),
      cache: Context.get(context, CacheStore.CacheStore)
    })
  )

/** Again and again, for a minute: RabbitMQ takes its time to come back. */
const patiently = Effect.retry(Schedule.spaced("100 millis").pipe(Schedule.upTo({ duration: "60 seconds" })))

const ttl = 120_000
const entry = (key: string, value: unknown) => ({ key, payload: Payload.fromTree(value) })

describe("Lock and Cache on RabbitMQ, seen from inside", () => {
  it.live(
    "survive a broker that is killed; begin anew, with higher fences, when the stream is deleted",
    () =>
      Effect.gen(function* () {
        const server = yield* RabbitServer.make()
        const a = yield* storesOn(server.url, "app")
        const b = yield* storesOn(server.url, "app")
        const held = yield* a.lock.acquire("s", "k", ttl)
        const waiting = yield* Effect.forkChild(b.lock.acquire("s", "k", ttl), { startImmediately: true })
        // A stream that is younger than this when RabbitMQ 3.10 is killed never comes back.
        const until = performance.now() + 1_000
        while (performance.now() < until) yield* a.cache.set("s", [entry("k", 1)], undefined)

        yield* server.kill
        assert.strictEqual((yield* Effect.flip(Fiber.join(waiting)))._tag, "Unavailable")
        yield* server.start
        assert.isTrue(yield* patiently(a.lock.renew(held, ttl)))
        assert.isUndefined(yield* patiently(b.lock.tryAcquire("s", "k", ttl)))
        assert.strictEqual((yield* patiently(b.cache.get("s", "k")))?.json, "1")
        const c = yield* storesOn(server.url, "app")
        assert.isUndefined(yield* c.lock.tryAcquire("s", "k", ttl))
        assert.strictEqual((yield* c.cache.get("s", "k"))?.json, "1")

        yield* Effect.promise(async () => {
          const connection = await connect(server.url)
          const channel = await connection.createChannel()
          await channel.deleteQueue("cohort.log.v1.app")
          await connection.close()
        })
        assert.isFalse(yield* patiently(a.lock.renew(held, ttl)))
        const next = (yield* patiently(b.lock.tryAcquire("s", "k", ttl)))!
        assert.isAbove(next.fence, held.fence)
        assert.isUndefined(yield* patiently(c.lock.tryAcquire("s", "k", ttl)))
        assert.isUndefined(yield* patiently(c.cache.get("s", "k")))
      }),
    180_000
  )

  it.live("a lock is known to who starts when the stream has forgotten its grant, by a snapshot", () =>
    Effect.gen(function* () {
      const url = yield* RabbitServer.sharedUrl
      const app = `forgetful-${process.pid}`
      const options = { maxBytes: 400_000, beat: 100 }
      const a = yield* storesOn(url, app, options)
      const held = yield* a.lock.acquire("s", "k", ttl)
      const text = "x".repeat(10_000)
      const firstOffset = Effect.promise(async () => {
        const connection = await connect(url)
        const channel = await connection.createChannel()
        await channel.prefetch(1)
        const offset = await new Promise<number>((resolve) => {
          channel.consume(
            `cohort.log.v1.${app}`,
            (message) => resolve(Number(message?.properties.headers?.["x-stream-offset"])),
            { arguments: { "x-stream-offset": "first" } }
          )
        })
        await connection.close()
        return offset
      })
      let first = 0
      for (let i = 0; first === 0 && i < 2_000; i++) {
        yield* a.cache.set("s", [entry(`key ${i}`, text)], undefined)
        if (i % 100 === 99) first = yield* firstOffset
      }
      assert.isAbove(first, 0)
      const b = yield* storesOn(url, app, options)
      const started = performance.now()
      assert.isUndefined(yield* b.lock.tryAcquire("s", "k", ttl))
      assert.isBelow(performance.now() - started, 20_000)
      yield* a.lock.release(held)
      assert.isAbove((yield* b.lock.acquire("s", "k", ttl)).fence, held.fence)
    })
  )
})
