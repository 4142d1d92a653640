/** The contracts on a Redis Cluster of three nodes, with every store on it. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Cohort, EventQueue, Job } from "../../src/index.ts"
import { RedisConnection } from "../../src/layers/redis/index.ts"
import { suite as cache } from "../../src/testing/contracts/cache.ts"
import { suite as lock } from "../../src/testing/contracts/lock.ts"
import { suite as pubsub } from "../../src/testing/contracts/pubsub.ts"
import { suite as queue } from "../../src/testing/contracts/queue.ts"
import { suite as sync } from "../../src/testing/contracts/sync.ts"
import * as RedisCluster from "../servers/RedisCluster.ts"
import { cluster, redisWith } from "./redis.ts"

const backend = redisWith("a Redis Cluster", {}, cluster)

cache(backend)
pubsub(backend)
sync(backend)
lock(backend, { propertyRuns: 10 })
queue(backend, { propertyRuns: 10 })

describe("RedisConnection to a Redis Cluster", () => {
  const test = <A, E>(name: string, body: Effect.Effect<A, E, Scope.Scope>): void =>
    it.live(name, () => Effect.provide(body, Logger.layer([])))

  const connect = (lazy = false) =>
    Effect.gen(function* () {
      const { nodes } = yield* RedisCluster.shared
      const { options, proxies } = yield* cluster
      const connection = yield* RedisConnection.make({ timeout: "2 seconds", lazy, ...options })
      return { nodes, proxies, connection }
    })

  /** A key of the node that has the lowest slots. */
  const keyOfFirst = (prefix: string) =>
    Effect.gen(function* () {
      const { nodes } = yield* RedisCluster.shared
      for (let i = 0; ; i++) {
        if (Number(yield* nodes[0]!.command("CLUSTER", "KEYSLOT", `${prefix}${i}`)) <= 5460) return `${prefix}${i}`
      }
    })

  test(
    "lists the keys of every node, also when that is its first operation",
    Effect.gen(function* () {
      const { connection } = yield* connect()
      const keys = Array.from({ length: 30 }, (_, i) => `scanned:${i}`)
      yield* Effect.forEach(keys, (key) => connection.send("set", [key, "v"]), { concurrency: "unbounded" })
      const { connection: lazy } = yield* connect(true)
      const found = yield* Stream.runCollect(lazy.scan("scanned:*"))
      assert.sameMembers(found.flat(), keys)
    })
  )

  test(
    "what was on its way to a node is not run late, after what comes on the next connection",
    Effect.gen(function* () {
      const { connection, proxies } = yield* connect()
      const [late, other] = [yield* keyOfFirst("late"), yield* keyOfFirst("other")]
      yield* connection.send("get", [other])
      yield* proxies[0]!.stall
      assert.isTrue(Exit.isFailure(yield* Effect.exit(connection.send("set", [late, "v"]))))
      yield* Effect.retry(connection.send("get", [other]), Schedule.spaced("100 millis"))
      yield* proxies[0]!.heal
      yield* Effect.sleep("100 millis")
      assert.strictEqual(yield* connection.send("get", [late]), null)
    })
  )

  test(
    "what a node could not take in time, as it was still connecting, is not run later",
    Effect.gen(function* () {
      const { options, proxies } = yield* cluster
      const { nodes } = yield* RedisCluster.shared
      // It connects within some 4 seconds.
      yield* proxies[0]!.latency(900)
      // Which nodes are asked for the slots, and whether all is well, is up to chance.
      const keys = yield* Effect.forEach([1, 2, 3, 4, 5, 6], (n) => keyOfFirst(`slow${n}:`))
      const exits = yield* Effect.forEach(
        keys,
        (key) =>
          Effect.gen(function* () {
            const connection = yield* RedisConnection.make({ timeout: "2 seconds", lazy: true, ...options })
            return yield* Effect.exit(connection.send("incr", [key]))
          }),
        { concurrency: "unbounded" }
      )
      yield* Effect.sleep("4 seconds")
      for (const [i, key] of keys.entries()) {
        if (Exit.isFailure(exits[i]!)) assert.isNull(yield* nodes[0]!.command("GET", key), key)
      }
    })
  )

  test(
    "what had left for a node that is lost fails at once, is repeated only if it may be, and never by itself",
    Effect.gen(function* () {
      const { connection, nodes, proxies } = yield* connect()
      const once = yield* keyOfFirst("once")
      const twice = yield* keyOfFirst("twice")
      yield* connection.send("get", [once])
      yield* proxies[0]!.blackhole
      const failing = yield* Effect.forkChild(Effect.exit(connection.send("incr", [once])), { startImmediately: true })
      const repeated = yield* Effect.forkChild(connection.send("incr", [twice], { retry: true }), {
        startImmediately: true
      })
      yield* Effect.sleep("100 millis")
      yield* proxies[0]!.heal
      yield* proxies[0]!.reset
      assert.isTrue(Exit.isFailure(yield* Fiber.join(failing)))
      assert.strictEqual(yield* Fiber.join(repeated), 1)
      yield* Effect.sleep("500 millis")
      assert.isNull(yield* nodes[0]!.command("GET", once))
      assert.strictEqual(yield* connection.send("incr", [once]), 1)
    })
  )

  test(
    "an app may be called what it wants, and its queues are in one slot each",
    Effect.gen(function* () {
      const { options } = yield* cluster
      for (const app of ["}", "{", "{}", "a}b{c}"]) {
        yield* Effect.gen(function* () {
          const job = Job.make("{job}", Schema.String)
          yield* EventQueue.publish(job, app)
          const got: Array<string> = []
          yield* EventQueue.subscribe(job, { process: (text) => Effect.sync(() => got.push(text)) })
          while (got.length === 0) yield* Effect.sleep("10 millis")
          assert.deepStrictEqual(got, [app])
        }).pipe(Effect.scoped, Effect.provide(Cohort.layerRedis({ app, ...options })))
      }
    })
  )

  test(
    "a job whose start was not answered has not begun: it runs elsewhere or later, and keeps its attempts",
    Effect.gen(function* () {
      const { nodes } = yield* RedisCluster.shared
      const { options } = yield* cluster
      const context = yield* Layer.build(Cohort.layerRedis({ app: "unanswered", timeout: "500 millis", ...options }))
      const slot = Number(yield* nodes[0]!.command("CLUSTER", "KEYSLOT", "{unanswered:queue:once}"))
      const node = nodes[Math.floor(slot / 5461)]!
      const Once = Job.make("once", Schema.Struct({ n: Schema.Number }))
      const jobs = Array.from({ length: 200 }, (_, n) => n)
      const ran = new Set<number>()
      yield* Effect.gen(function* () {
        yield* Effect.forEach(jobs, (n) => EventQueue.publish(Once, { n }), { concurrency: "unbounded" })
        yield* EventQueue.subscribe(Once, {
          lease: "2 seconds",
          process: ({ n }) => {
            ran.add(n)
            // By now jobs are read ahead. The next one is asked for at once, and not answered.
            return n === 100 ? node.freeze : Effect.void
          }
        })
        while (ran.size < 101) yield* Effect.sleep("10 millis")
        yield* Effect.sleep("1 second")
        yield* node.thaw
        const depth = Effect.retry(EventQueue.depth(Once), Schedule.spaced("100 millis"))
        const { dead } = yield* Effect.repeat(depth, {
          until: ({ inFlight, ready }) => ready + inFlight === 0,
          schedule: Schedule.spaced("50 millis")
        })
        assert.strictEqual(dead, 0)
        assert.lengthOf([...ran], jobs.length)
      }).pipe(Effect.scoped, Effect.provide(context))
    })
  )

  // The last one: it kills a node that all share.
  test(
    "a node that dies takes nothing down for good",
    Effect.gen(function* () {
      const { connection, nodes } = yield* connect()
      const key = yield* keyOfFirst("k")
      yield* connection.send("set", [key, "v"])
      const events: Array<string> = []
      yield* connection.subscribe(
        "c",
        (message) => events.push(message),
        () => events.push("gap")
      )
      yield* nodes[0]!.kill
      const error = yield* Effect.flip(Effect.timeout(connection.send("get", [key]), "10 seconds"))
      assert.strictEqual(error._tag, "Unavailable")
      // Its subscriptions were on that node, and find another one.
      while (!events.includes("gap")) yield* Effect.sleep("10 millis")
      yield* nodes[0]!.start
      const work = Effect.all([connection.send("set", [key, "w"]), connection.publish("c", "m", true)])
      yield* Effect.retry(work, Schedule.spaced("100 millis"))
      assert.strictEqual(yield* connection.send("get", [key]), "w")
      while (!events.includes("m")) yield* Effect.sleep("10 millis")
    })
  )
})
