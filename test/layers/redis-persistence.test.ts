/** What Effect builds on Redis, on our connection; and what is said about a Redis that forgets. */
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as PersistedQueue from "effect/persistence/PersistedQueue"
import * as RateLimiter from "effect/persistence/RateLimiter"
import * as Redis from "effect/persistence/Redis"
import * as Queue from "effect/Queue"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import { RedisConnection, type RedisOptions } from "../../src/layers/redis/index.ts"
import { warnUnlessDurable } from "../../src/layers/redis/RedisDurability.ts"
import * as RedisPersistence from "../../src/layers/redis/RedisPersistence.ts"
import * as RedisCluster from "../servers/RedisCluster.ts"
import * as RedisServer from "../servers/RedisServer.ts"
import * as TcpProxy from "../servers/TcpProxy.ts"

const persistence = (options: RedisOptions.RedisOptions) =>
  RedisPersistence.layer.pipe(Layer.provide(RedisConnection.layer({ timeout: "2 seconds", ...options })))

/** The service of an instance of its own. */
const redisOf = (options: RedisOptions.RedisOptions) =>
  Effect.map(Layer.build(persistence(options)), Context.get(Redis.Redis))

const limiterOf = (options: RedisOptions.RedisOptions) =>
  Effect.map(
    Layer.build(
      RateLimiter.layer.pipe(Layer.provide(RateLimiter.layerStoreRedis()), Layer.provide(persistence(options)))
    ),
    Context.get(RateLimiter.RateLimiter)
  )

describe("RedisPersistence", () => {
  it.live("RateLimiter counts over two instances, also after SCRIPT FLUSH", () =>
    Effect.gen(function* () {
      const server = yield* RedisServer.make({ appendOnly: false })
      const limiters = [yield* limiterOf({ url: server.url }), yield* limiterOf({ url: server.url })] as const
      for (const algorithm of ["fixed-window", "token-bucket"] as const) {
        const consume = (on: 0 | 1) =>
          limiters[on].consume({ algorithm, key: algorithm, limit: 4, window: "1 hour", onExceeded: "fail" })
        assert.strictEqual((yield* consume(0)).remaining, 3)
        assert.strictEqual((yield* consume(1)).remaining, 2)
        yield* server.command("SCRIPT", "FLUSH")
        assert.strictEqual((yield* consume(1)).remaining, 1)
        assert.strictEqual((yield* consume(0)).remaining, 0)
        for (const on of [0, 1] as const) {
          assert.strictEqual((yield* Effect.flip(consume(on))).reason._tag, "RateLimitExceeded")
        }
      }
    })
  )

  it.live("RateLimiter counts on a Redis Cluster, whichever node has the key", () =>
    Effect.gen(function* () {
      const { nodes } = yield* RedisCluster.make
      const cluster = { nodes: nodes.map(({ port }) => ({ host: "127.0.0.1", port })) }
      const limiters = [yield* limiterOf({ cluster }), yield* limiterOf({ cluster })] as const
      for (let i = 0; i < 12; i++) {
        const consume = (on: 0 | 1) =>
          limiters[on].consume({ algorithm: "fixed-window", key: `${i}`, limit: 2, window: "1 hour" })
        assert.strictEqual((yield* consume(0)).remaining, 1)
        assert.strictEqual((yield* consume(1)).remaining, 0)
      }
    })
  )

  it.live("PersistedQueue hands an element to another instance", () =>
    Effect.gen(function* () {
      const server = yield* RedisServer.make({ appendOnly: false })
      const queueOf = Effect.flatMap(
        Layer.build(
          PersistedQueue.layer.pipe(
            Layer.provide(PersistedQueue.layerStoreRedis()),
            Layer.provide(persistence({ url: server.url }))
          )
        ),
        (context) => Effect.provide(PersistedQueue.make({ name: "numbers", schema: Schema.Number }), context)
      )
      const [one, two] = [yield* queueOf, yield* queueOf]
      yield* one.offer(42)
      assert.strictEqual(yield* two.take((value) => Effect.succeed(value)), 42)
    })
  )

  it.live("commands, messages and reserved connections; errors are Effect's, with their cause", () =>
    Effect.gen(function* () {
      const server = yield* RedisServer.make({ appendOnly: false })
      const redis = yield* redisOf({ url: server.url })
      assert.strictEqual(yield* redis.send("SET", "k", "v"), "OK")
      assert.strictEqual(yield* redis.send("GET", "k"), "v")
      const messages = yield* redis.subscribe("c")
      yield* redis.send("PUBLISH", "c", "m")
      assert.deepStrictEqual(yield* Queue.take(messages), { channel: "c", message: "m" })

      const script = Redis.script((key: string, by: number) => [key, by], {
        lua: "return redis.call('incrby', KEYS[1], ARGV[1])",
        numberOfKeys: 1
      }).withReturnType<number>()
      yield* Effect.scoped(
        Effect.gen(function* () {
          const own = yield* redis.reserve
          yield* Effect.forkChild(Effect.delay(redis.send("RPUSH", "list", "item"), "50 millis"))
          assert.deepStrictEqual(yield* own.send("BLPOP", "list", "10"), ["list", "item"])
          assert.strictEqual(yield* own.eval(script)("n", 1), 1)
          yield* redis.send("SCRIPT", "FLUSH")
          assert.strictEqual(yield* own.eval(script)("n", 2), 3)
          assert.strictEqual(yield* redis.eval(script)("n", 3), 6)
        })
      )

      const wrong = yield* Effect.flip(redis.send("INCR", "k"))
      assert.instanceOf(wrong, Redis.RedisError)
      assert.include(String(wrong.cause), "not an integer")
      yield* server.kill
      assert.instanceOf(yield* Effect.flip(redis.send("GET", "k")), Redis.RedisError)
      // First on the connection that was left, then for want of one.
      const reserved = Effect.scoped(Effect.flatMap(redis.reserve, (own) => own.send("GET", "k")))
      for (let i = 0; i < 2; i++) assert.instanceOf(yield* Effect.flip(reserved), Redis.RedisError)
    })
  )

  it.live("a connection that cannot be made is given up within the timeout, whatever is silent", () =>
    Effect.gen(function* () {
      const server = yield* RedisServer.make({ appendOnly: false })
      const proxy = yield* TcpProxy.make({ host: "127.0.0.1", port: server.port })
      const redis = yield* redisOf({ url: `redis://127.0.0.1:${proxy.port}`, timeout: "500 millis" })
      const reserved = Effect.scoped(Effect.flatMap(redis.reserve, (own) => own.send("PING")))
      yield* proxy.blackhole
      const error = yield* Effect.timeout(Effect.flip(reserved), "5 seconds")
      assert.include(String(error.cause), "no answer within 500 ms")
      yield* proxy.heal
      assert.strictEqual(yield* reserved, "PONG")
    }).pipe(Effect.provide(Logger.layer([])))
  )
})

describe("RedisDurability", () => {
  it.live("warns when Redis may lose what it accepts, in words; and never fails", () =>
    Effect.gen(function* () {
      const logs: Array<{ readonly level: string; readonly message: string }> = []
      const logger = Logger.make(
        ({ logLevel, message }) => void logs.push({ level: logLevel, message: String(message) })
      )
      const said = (redis: RedisConnection.RedisConnection["Service"]) =>
        Effect.map(
          warnUnlessDurable(redis).pipe(
            Effect.provide(Logger.layer([logger])),
            Effect.provideService(References.MinimumLogLevel, "Debug")
          ),
          () => logs.splice(0)
        )
      const connect = (url: string) => RedisConnection.make({ url, timeout: "500 millis" })

      const durable = yield* RedisServer.make({ args: ["--maxmemory", "100mb"] })
      const redis = yield* connect(durable.url)
      assert.deepStrictEqual(yield* said(redis), [])

      yield* durable.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
      const [evicting, ...none] = yield* said(redis)
      assert.lengthOf(none, 0)
      assert.strictEqual(evicting?.level, "Warn")
      assert.match(evicting!.message, /evict.*allkeys-lru.*noeviction/)

      const forgetful = yield* RedisServer.make({ appendOnly: false })
      const [losing, ...nothing] = yield* said(yield* connect(forgetful.url))
      assert.lengthOf(nothing, 0)
      assert.strictEqual(losing?.level, "Warn")
      assert.include(losing!.message, "appendonly yes")

      yield* forgetful.command("ACL", "SETUSER", "default", "-info")
      const refused = yield* RedisConnection.make({ url: forgetful.url, timeout: "500 millis", lazy: true })
      yield* durable.kill
      for (const silent of [refused, redis]) {
        assert.deepStrictEqual(
          (yield* said(silent)).map(({ level }) => level),
          ["Debug"]
        )
      }
    }).pipe(Effect.provide(Logger.layer([])))
  )
})
