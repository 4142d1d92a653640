import { spawn } from "node:child_process"
import { createInterface } from "node:readline"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { Redis } from "ioredis"
import { Cache, CacheStore, type Instance, Payload, PubSub } from "../../src/index.ts"
import {
  RedisCacheStore,
  RedisConnection,
  type RedisOptions,
  RedisPubSubTransport
} from "../../src/layers/redis/index.ts"
import { Instance as InstanceModule } from "../../src/services/index.ts"
import { suite } from "../../src/testing/contracts/cache.ts"
import * as RedisCluster from "../servers/RedisCluster.ts"
import * as RedisServer from "../servers/RedisServer.ts"
import * as TcpProxy from "../servers/TcpProxy.ts"
import { redis } from "./redis.ts"

suite(redis)

const payload = (value: unknown) => Payload.Payload.fromTree(value)
const forever = undefined

/** A store on a connection of its own. */
const storeOn = (options: RedisOptions.RedisOptions) =>
  Effect.map(Layer.build(Layer.provide(RedisCacheStore.layer, RedisConnection.layer(options))), (context) =>
    CacheStore.CacheStore.use(Effect.succeed).pipe(Effect.provide(context))
  ).pipe(Effect.flatten)

/** A client of the test's own. */
const clientOf = (url: string) =>
  Effect.acquireRelease(
    Effect.sync(() => new Redis(url)),
    (client) => Effect.sync(() => client.disconnect())
  )

const until = (condition: () => Promise<boolean> | boolean, what: string): Effect.Effect<number> =>
  Effect.promise(async () => {
    const begin = performance.now()
    while (!(await condition())) {
      if (performance.now() - begin > 15_000) throw new Error(`never happened: ${what}`)
      await new Promise((resume) => setTimeout(resume, 10))
    }
    return performance.now() - begin
  })

describe("Cache on Redis, seen from inside", () => {
  const inside = Effect.gen(function* () {
    const server = yield* RedisServer.make({ appendOnly: false })
    const store = yield* storeOn({ url: server.url, timeout: "2 seconds" })
    const client = yield* clientOf(server.url)
    /** How often Redis has run a command since, by name. */
    const calls = Effect.promise(async () => {
      const stats = await client.info("commandstats")
      return (name: string) => Number(new RegExp(`cmdstat_${name}:calls=(\\d+)`).exec(stats)?.[1] ?? 0)
    })
    const entries = () => client.keys("cohort:*:*")
    return { server, store, client, calls, entries }
  })

  it.live("what meets in one turn goes out together: gets as MGET, sets and dels as a script, in order", () =>
    Effect.gen(function* () {
      const { calls, store } = yield* inside
      yield* store.set("s", [{ key: "warm", payload: payload(0) }], forever)
      const earlier = yield* calls
      const keys = Array.from({ length: 25 }, (_, i) => `key ${i}`)
      const answers = yield* Effect.all(
        [
          store.get("s", "key 0"),
          Effect.forEach(keys, (key, i) => store.set("s", [{ key, payload: payload(i) }], forever), {
            concurrency: "unbounded"
          }),
          // Removes what was set in the same turn, and sets again what was removed.
          store.del("s", ["key 1", "key 2", "none"]),
          store.set("s", [{ key: "key 2", payload: payload("again") }], 60_000),
          Effect.forEach(keys, (key) => store.get("s", key), { concurrency: "unbounded" }),
          store.getMany("s", ["key 1", "key 2", "key 3", "key 1"]),
          store.ttl("s", "key 2"),
          store.ttl("s", "key 3")
        ],
        { concurrency: "unbounded" }
      )
      assert.strictEqual(answers[2], 2)
      const json = answers[4].map((found) => found?.json)
      assert.deepStrictEqual(json.slice(0, 4), ["0", undefined, '"again"', "3"])
      assert.deepStrictEqual(
        answers[5].map((found) => found?.json),
        [undefined, '"again"', "3", undefined]
      )
      assert.isAtMost(answers[6]!, 60_000)
      assert.strictEqual(answers[7], Number.POSITIVE_INFINITY)
      const later = yield* calls
      const ran = (name: string) => later(name) - earlier(name)
      // The first get was before the sets.
      assert.strictEqual(ran("mget"), 2)
      // One script for the writes, and one for the ttls, which the server does not know at first.
      assert.isAtMost(ran("evalsha") + ran("eval"), 3)
    })
  )

  it.live("what a reset leaves behind is unlinked, and live entries outlive a sweep that races with their sets", () =>
    Effect.gen(function* () {
      const { client, entries, store } = yield* inside
      const batch = (name: string, n: number) =>
        Array.from({ length: n }, (_, i) => ({ key: `${name} ${i}`, payload: payload(name) }))
      yield* store.set("other", batch("other", 100), forever)
      yield* store.set("s", batch("old", 20_000), forever)
      yield* store.reset("s")
      assert.deepStrictEqual(yield* store.keys("none"), [])
      const live = new Set<string>()
      let resets = 1
      for (let round = 0; round < 60; round++) {
        if (round === 30) {
          yield* store.reset("s")
          live.clear()
          resets++
        }
        // New entries, and old ones that are written again while they are being unlinked.
        const written = [...batch(`new ${round}`, 20), ...batch("old", 200 * (round % 30))]
        yield* store.set("s", written, forever)
        for (const { key } of written) live.add(key)
        yield* Effect.sleep("5 millis")
      }
      assert.strictEqual(resets, 2)
      yield* until(async () => (await entries()).length === live.size + 100, "nothing but live entries is left")
      const found = yield* store.getMany("s", [...live])
      assert.strictEqual(found.filter((one) => one !== undefined).length, live.size)
      assert.sameMembers([...(yield* store.keys("s"))], [...live])
      assert.lengthOf(yield* store.keys("other"), 100)

      yield* store.reset("s")
      yield* store.reset("other")
      yield* until(async () => (await entries()).length === 0, "nothing is left")
      assert.lengthOf(yield* Effect.promise(() => client.keys("*")), 2) // the generations
    })
  )

  it.live("keys unlinks what another instance has reset and left", () =>
    Effect.gen(function* () {
      const { entries, server, store } = yield* inside
      yield* store.set("s", [{ key: "k", payload: payload(1) }], forever)
      // It is gone before its sweep begins.
      yield* Effect.scoped(Effect.flatMap(storeOn({ url: server.url }), (other) => other.reset("s")))
      assert.lengthOf(yield* Effect.promise(entries), 1)
      assert.deepStrictEqual(yield* store.keys("s"), [])
      assert.lengthOf(yield* Effect.promise(entries), 0)
    })
  )

  it.live("loads leave nothing behind but what they store; a placeholder is no entry, and ends by itself", () =>
    Effect.gen(function* () {
      const { client, entries, store } = yield* inside
      for (let i = 0; i < 50; i++) {
        const first = yield* store.reserve("s", "k")
        const second = yield* store.reserve("s", "k")
        assert.strictEqual(yield* store.get("s", "k"), undefined)
        assert.strictEqual(yield* store.ttl("s", "k"), undefined)
        assert.deepStrictEqual(yield* store.keys("s"), [])
        const [key] = yield* Effect.promise(entries)
        assert.isAbove(yield* Effect.promise(() => client.pttl(key!)), 60_000)
        yield* store.abandon("s", "k", first)
        assert.lengthOf(yield* Effect.promise(entries), 1)
        if (i % 2 === 0) yield* store.abandon("s", "k", second)
        else assert.strictEqual(yield* store.del("s", ["k"]), 0)
        assert.lengthOf(yield* Effect.promise(entries), 0)
        assert.isFalse(yield* store.fill("s", "k", second, payload(1), forever))
      }
      // Two who load at once may both store; whoever wrote in between wins.
      const first = yield* store.reserve("s", "k")
      const second = yield* store.reserve("s", "k")
      assert.isTrue(yield* store.fill("s", "k", first, payload(1), forever))
      assert.isTrue(yield* store.fill("s", "k", second, payload(2), 60_000))
      const third = yield* store.reserve("s", "k")
      assert.strictEqual((yield* store.get("s", "k"))?.json, "2")
      yield* store.set("s", [{ key: "k", payload: payload(3) }], forever)
      assert.isFalse(yield* store.fill("s", "k", third, payload(4), forever))
      assert.strictEqual((yield* store.get("s", "k"))?.json, "3")
    })
  )

  it.live("FLUSHALL, SCRIPT FLUSH and an evicted generation cost entries, and bring none back", () =>
    Effect.gen(function* () {
      const { client, server, store } = yield* inside
      const set = (value: number) => store.set("s", [{ key: "k", payload: payload(value) }], forever)
      yield* set(1)
      const reservation = yield* store.reserve("s", "loading")
      yield* server.command("script", "flush")
      assert.strictEqual((yield* store.get("s", "k"))?.json, "1")
      yield* set(2)
      assert.strictEqual((yield* store.get("s", "k"))?.json, "2")

      const generation = (yield* Effect.promise(() => client.keys("cohort:*"))).find((key) => key.endsWith("}"))!
      yield* Effect.promise(() => client.del(generation))
      assert.strictEqual(yield* store.get("s", "k"), undefined)
      assert.isFalse(yield* store.fill("s", "loading", reservation, payload(1), forever))
      yield* store.set("s", [{ key: "another", payload: payload(1) }], forever)
      assert.strictEqual(yield* store.get("s", "k"), undefined)
      assert.strictEqual(yield* store.ttl("s", "k"), undefined)
      assert.deepStrictEqual(yield* store.keys("s"), ["another"])

      yield* server.command("flushall")
      assert.strictEqual(yield* store.get("s", "another"), undefined)
      yield* set(3)
      assert.strictEqual((yield* store.get("s", "k"))?.json, "3")
    })
  )

  it.live("a reset that is repeated, its answer lost, brings nothing back that others have reset since", () =>
    Effect.gen(function* () {
      const { server, store } = yield* inside
      const proxy = yield* TcpProxy.make({ host: "127.0.0.1", port: server.port })
      const cut = yield* storeOn({ url: `redis://127.0.0.1:${proxy.port}`, timeout: "5 seconds" })
      yield* cut.reset("s")
      yield* store.set("s", [{ key: "k", payload: payload("first") }], forever)
      // Its answer is on the way when the connection is lost.
      yield* proxy.latency(200)
      const reset = yield* Effect.forkChild(cut.reset("s"), { startImmediately: true })
      yield* until(async () => (await Effect.runPromise(store.get("s", "k"))) === undefined, "it has run")
      yield* Effect.all([proxy.refuse, proxy.reset, proxy.latency(0)])
      yield* store.set("s", [{ key: "k", payload: payload("second") }], forever)
      yield* store.reset("s")
      yield* proxy.heal
      yield* Fiber.join(reset)
      assert.strictEqual(yield* store.get("s", "k"), undefined)
    })
  )

  it.live("ttls are whole milliseconds that Redis takes, however odd the caller's", () =>
    Effect.gen(function* () {
      const { store } = yield* inside
      for (const ttl of [0.001, 1.5, 1e6 + 0.1, 1e15, 1e300]) {
        yield* store.set("s", [{ key: "k", payload: payload(1) }], ttl)
        const reservation = yield* store.reserve("s", "other")
        yield* store.fill("s", "other", reservation, payload(1), ttl)
        if (ttl > 1_000) assert.isAbove((yield* store.ttl("s", "k"))!, 900_000)
      }
    })
  )
})

/** A process that wraps when told to; a load counts in Redis. */
const startWorker = (url: string) => {
  const script = new URL("./redis-cache-worker.ts", import.meta.url).pathname
  const worker = spawn(process.execPath, [script, url], { stdio: ["pipe", "pipe", "inherit"] })
  const lines = createInterface({ input: worker.stdout })[Symbol.asyncIterator]()
  const line = () => lines.next().then(({ value }) => String(value))
  return {
    ready: line(),
    wrap: (key: string, callers: number) => {
      worker.stdin.write(`${JSON.stringify({ key, callers })}\n`)
      return line()
    },
    kill: () => worker.kill("SIGKILL")
  }
}

/** Caches of one instance, broadcast through a proxy of its own, which can go silent. */
const nearInstance = (url: string, id: string, near: Cache.Options["near"]) =>
  Effect.gen(function* () {
    const target = new URL(url)
    const proxy = yield* TcpProxy.make({ host: target.hostname, port: Number(target.port) })
    const identity: Layer.Layer<Instance.Instance, unknown> = InstanceModule.layer({ app: `near-${process.pid}`, id })
    const services = yield* Layer.build(
      Layer.mergeAll(
        Layer.provide(Cache.layer, [
          Layer.provide(RedisCacheStore.layer, RedisConnection.layer({ url, timeout: "5 seconds" })),
          identity
        ]),
        Layer.provide(PubSub.layer, [
          Layer.provide(
            RedisPubSubTransport.layer,
            // Trusts a silent connection for a while: what is lost meanwhile is not noticed.
            RedisConnection.layer({ url: `redis://127.0.0.1:${proxy.port}`, timeout: "4 seconds" })
          ),
          identity
        ])
      )
    )
    const cache = yield* Effect.provide(Cache.make("numbers", Schema.Number, { near }), services)
    return { cache, proxy }
  })

describe("wrap in two processes", () => {
  it.live("1,000 callers of one cold key, exclusive: one load", () =>
    Effect.gen(function* () {
      const server = yield* RedisServer.make({ appendOnly: false })
      const client = yield* clientOf(server.url)
      const workers = [1, 2].map(() => startWorker(server.url))
      yield* Effect.addFinalizer(() => Effect.sync(() => workers.map(({ kill }) => kill())))
      yield* Effect.promise(() => Promise.all(workers.map(({ ready }) => ready)))
      for (let round = 1; round <= 3; round++) {
        const answers = yield* Effect.promise(() => Promise.all(workers.map(({ wrap }) => wrap(`key ${round}`, 1_000))))
        assert.strictEqual(Number(yield* Effect.promise(() => client.get("loads"))), round)
        assert.deepStrictEqual(answers, [`1000 times ${round}`, `1000 times ${round}`])
      }
    })
  )
})

describe("near cache on Redis", () => {
  it.live("a set is read on another instance within milliseconds", () =>
    Effect.gen(function* () {
      const server = yield* RedisServer.make({ appendOnly: false })
      const a = yield* nearInstance(server.url, "a", { ttl: "1 hour" })
      const b = yield* nearInstance(server.url, "b", { ttl: "1 hour" })
      const times: Array<number> = []
      for (let i = 0; i < 50; i++) {
        yield* a.cache.set("k", i)
        const run = Effect.runPromise
        times.push(yield* until(async () => Option.contains(await run(b.cache.get("k")), i), `k is ${i}`))
      }
      times.sort((x, y) => x - y)
      assert.isBelow(times[25]!, 250)
    })
  )

  it.live("with its subscription gone silent an instance reads the old value for at most the near ttl", () =>
    Effect.gen(function* () {
      const server = yield* RedisServer.make({ appendOnly: false })
      const a = yield* nearInstance(server.url, "a", { ttl: "1500 millis" })
      const b = yield* nearInstance(server.url, "b", { ttl: "1500 millis" })
      const is = (value: number) => Effect.map(b.cache.get("k"), (found) => Option.contains(found, value))
      // By itself, so that nothing it is told of is on its way.
      yield* b.cache.set("k", 1)
      assert.isTrue(yield* is(1))
      yield* b.proxy.blackhole
      assert.isTrue(yield* is(1))
      yield* a.cache.set("k", 2)
      const stale = yield* until(() => Effect.runPromise(is(2)), "k is 2")
      // Nothing but its ttl can have ended it: the connection is trusted for longer.
      assert.isAtMost(stale, 1_500 + 500)
    })
  )

  it.live("after a reconnect nothing from before is read", () =>
    Effect.gen(function* () {
      const server = yield* RedisServer.make({ appendOnly: false })
      const a = yield* nearInstance(server.url, "a", { ttl: "1 hour" })
      const b = yield* nearInstance(server.url, "b", { ttl: "1 hour" })
      const is = (value: number) => Effect.map(b.cache.get("k"), (found) => Option.contains(found, value))
      // By itself, so that nothing it is told of is on its way.
      yield* b.cache.set("k", 1)
      assert.isTrue(yield* is(1))
      yield* Effect.andThen(b.proxy.refuse, b.proxy.reset)
      yield* a.cache.set("k", 2)
      assert.isTrue(yield* is(1))
      yield* b.proxy.heal
      yield* until(() => Effect.runPromise(is(2)), "k is 2")
    })
  )

  it.live("a hit does not ask Redis", () =>
    Effect.gen(function* () {
      const server = yield* RedisServer.make({ appendOnly: false })
      const { cache } = yield* nearInstance(server.url, "a", true)
      yield* cache.set("k", 1, { ttl: "1 minute" })
      yield* cache.get("k")
      yield* server.freeze
      for (let i = 0; i < 100; i++) {
        assert.deepStrictEqual(yield* cache.get("k"), Option.some(1))
        assert.strictEqual(yield* cache.wrap("k", Effect.die("hit")), 1)
      }
      yield* server.thaw
    })
  )
})

describe("Cache on a Redis Cluster", () => {
  it.live("reads, writes, resets and loads over all nodes, without CROSSSLOT", () =>
    Effect.gen(function* () {
      const { nodes } = yield* RedisCluster.make
      const options = {
        cluster: { nodes: nodes.map(({ port }) => ({ host: "127.0.0.1", port })) },
        timeout: "5 seconds"
      } as const
      const store = yield* storeOn(options)
      const other = yield* storeOn(options)
      const clients = yield* Effect.forEach(nodes, ({ url }) => clientOf(url))
      const entries = async () =>
        (await Promise.all(clients.map((client) => client.keys("cohort:*}:*")))).map((keys) => keys.length)

      for (const space of [
        "app:cache:plain",
        "app:cache:{x}",
        "app:cache:}{",
        "a{b}:cache:*[c]\\?",
        "app:cache:\ud800"
      ]) {
        const keys = Array.from({ length: 2_000 }, (_, i) => (i % 2 === 0 ? `key ${i}` : `{tag}${i}*\ud800`))
        yield* store.set(
          space,
          keys.map((key) => ({ key, payload: payload(key.length) })),
          forever
        )
        for (const count of yield* Effect.promise(entries)) assert.isAbove(count, 400)
        const found = yield* other.getMany(space, [...keys, "none", keys[0]!])
        assert.deepStrictEqual(
          found.map((one) => one?.tree),
          [...keys.map((key) => key.length), undefined, keys[0]!.length]
        )
        assert.sameMembers([...(yield* other.keys(space))], keys)
        assert.strictEqual(yield* other.del(space, [...keys.slice(0, 500), "none", keys[0]!]), 500)
        const reservations = yield* Effect.forEach(keys.slice(0, 50), (key) => store.reserve(space, key))
        const late = yield* Effect.forEach(keys.slice(50, 100), (key) => store.reserve(space, key))
        for (const [i, reservation] of reservations.entries()) {
          assert.isTrue(yield* store.fill(space, keys[i]!, reservation, payload(1), 60_000))
        }
        yield* other.reset(space)
        assert.deepStrictEqual(yield* store.keys(space), [])
        for (const [i, reservation] of late.entries()) {
          assert.isFalse(yield* store.fill(space, keys[50 + i]!, reservation, payload(1), 60_000))
        }
        assert.isTrue((yield* store.getMany(space, keys)).every((one) => one === undefined))
        yield* store.set(space, [{ key: "after", payload: payload(1) }], forever)
        assert.deepStrictEqual(yield* other.keys(space), ["after"])
        yield* store.reset(space)
        yield* until(async () => (await entries()).every((count) => count === 0), "nothing is left")
      }
    })
  )
})
