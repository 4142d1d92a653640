/** Locks on Redis while processes die, stop and lose their connections, and Redis does too. */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as RedisServer from "../servers/RedisServer.ts"
import * as TcpProxy from "../servers/TcpProxy.ts"
import { soak, startWorker, workersOn } from "./locks.ts"

const proxied = (server: RedisServer.RedisServer) =>
  Effect.map(TcpProxy.make({ host: "127.0.0.1", port: server.port }), (proxy) => ({
    ...proxy,
    url: `redis://127.0.0.1:${proxy.port}`
  }))

/** Until that many wait for the lock. */
const waiting = (server: RedisServer.RedisServer, count: number) =>
  Effect.promise(() =>
    RedisServer.waitUntil(
      async () => {
        const keys = (await Effect.runPromise(server.command("keys", "*:q"))) as ReadonlyArray<string>
        const lengths = keys.map((key) => Effect.runPromise(server.command("llen", key)))
        return (await Promise.all(lengths)).reduce((sum: number, length) => sum + Number(length), 0) === count
      },
      () => `never ${count} waiters`
    )
  )

/** Milliseconds. Long enough to get through a busy machine, and short to wait for. */
const ttl = 1_500
const pause = (millis: number) => Effect.sleep(millis)

describe.concurrent("a lock on Redis", () => {
  const test = (name: string, body: (server: RedisServer.RedisServer) => Effect.Effect<void, never, Scope.Scope>) =>
    it.live(name, () => Effect.flatMap(RedisServer.make({ fsync: "always" }), body))

  test("whose holder is killed goes to the next within its ttl", (server) =>
    Effect.gen(function* () {
      const [a, b] = yield* workersOn(server.url, 2)
      yield* a!.hold("first", { ttl })
      const first = yield* a!.fence("first")
      yield* b!.hold("second", { ttl })
      yield* waiting(server, 1)
      // Its ttl has been over once: it was renewed.
      yield* pause(ttl + 500)
      assert.isFalse(b!.has("second", "granted"))
      yield* a!.signal("SIGKILL")
      assert.isAbove(yield* b!.fence("second", ttl + 1_000), first)
    }))

  test("whose holder is frozen past its lease goes to the next; thawed, its work is stopped", (server) =>
    Effect.gen(function* () {
      const [a, b] = yield* workersOn(server.url, 2)
      yield* a!.hold("first", { ttl })
      const first = yield* a!.fence("first")
      yield* b!.hold("second", { ttl })
      yield* waiting(server, 1)
      yield* a!.signal("SIGSTOP")
      const second = yield* b!.fence("second", ttl + 1_000)
      assert.isAbove(second, first)
      yield* a!.signal("SIGCONT")
      yield* a!.hears("first", "interrupted")
      assert.strictEqual((yield* a!.hears("first", "ended")).reason, "LockLost")
      // Nothing was taken from the new holder, and the old one can have it again.
      yield* a!.hold("third", { ttl })
      yield* waiting(server, 1)
      yield* pause(ttl)
      assert.isFalse(a!.has("third", "granted"))
      yield* b!.release("second")
      assert.isAbove(yield* a!.fence("third"), second)
      assert.isUndefined((yield* b!.hears("second", "ended")).reason)
    }))

  for (const [how, cutOff] of [
    ["cut off", (proxy: TcpProxy.TcpProxy) => Effect.andThen(proxy.refuse, proxy.reset)],
    ["cut off without a word", (proxy: TcpProxy.TcpProxy) => proxy.blackhole]
  ] as const) {
    test(`whose holder is ${how} goes to the next within its ttl, and its work is stopped`, (server) =>
      Effect.gen(function* () {
        const proxy = yield* proxied(server)
        const a = yield* startWorker(proxy.url)
        const b = yield* startWorker(server.url)
        yield* a.hold("first", { ttl })
        const first = yield* a.fence("first")
        yield* b.hold("second", { ttl })
        yield* waiting(server, 1)
        yield* cutOff(proxy)
        assert.isAbove(yield* b.fence("second", ttl + 1_000), first)
        yield* a.hears("first", "interrupted")
        assert.strictEqual((yield* a.hears("first", "ended")).reason, "LockLost")
        yield* proxy.heal
        yield* b.release("second")
        yield* b.hears("second", "ended")
        yield* a.hold("third", { ttl })
        yield* a.fence("third")
      }))
  }

  test("passes over a waiter that was killed at the head of the line", (server) =>
    Effect.gen(function* () {
      const [a, b, c] = yield* workersOn(server.url, 3)
      yield* a!.hold("first", { ttl: 30_000 })
      yield* a!.fence("first")
      yield* b!.hold("dead", { ttl: 30_000 })
      yield* waiting(server, 1)
      yield* c!.hold("next", { ttl: 30_000 })
      yield* waiting(server, 2)
      yield* b!.signal("SIGKILL")
      yield* Effect.promise(() =>
        RedisServer.waitUntil(
          async () => (await Effect.runPromise(channels(server))).length === 2,
          () => "its subscription stays"
        )
      )
      yield* a!.release("first")
      yield* c!.fence("next", 2_000)
    }))

  test("survives SCRIPT FLUSH at any time", (server) =>
    Effect.gen(function* () {
      const [a, b] = yield* workersOn(server.url, 2)
      let last = 0
      for (let i = 0; i < 5; i++) {
        yield* a!.hold(`a${i}`, { ttl })
        const first = yield* a!.fence(`a${i}`)
        assert.isAbove(first, last)
        yield* server.command("script", "flush")
        yield* b!.hold(`b${i}`, { ttl })
        yield* waiting(server, 1)
        yield* server.command("script", "flush")
        yield* a!.release(`a${i}`)
        last = yield* b!.fence(`b${i}`, 2_000)
        assert.isAbove(last, first)
        yield* server.command("script", "flush")
        yield* b!.release(`b${i}`)
        assert.isUndefined((yield* b!.hears(`b${i}`, "ended")).reason)
      }
    }))

  // Until its next renewal the old holder does not know: only the fences tell the two apart.
  test("that is flushed is lost to its holder, and granted anew with higher fences", (server) =>
    Effect.gen(function* () {
      const [a, b] = yield* workersOn(server.url, 2)
      yield* a!.hold("first", { ttl })
      const first = yield* a!.fence("first")
      yield* b!.hold("second", { ttl })
      yield* waiting(server, 1)
      yield* server.command("flushall")
      const second = yield* b!.fence("second")
      assert.isAbove(second, first)
      assert.strictEqual((yield* a!.hears("first", "ended")).reason, "LockLost")
      yield* a!.hold("third", { ttl })
      yield* waiting(server, 1)
      yield* b!.release("second")
      assert.isAbove(yield* a!.fence("third"), second)
    }))

  test("reaches its waiters when their subscriptions were cut", (server) =>
    Effect.gen(function* () {
      const [a, b, c] = yield* workersOn(server.url, 3)
      yield* a!.hold("first", { ttl: 30_000 })
      yield* a!.fence("first")
      yield* b!.hold("second", { ttl: 30_000 })
      yield* c!.hold("third", { ttl: 30_000 })
      yield* waiting(server, 2)
      yield* server.command("client", "kill", "type", "pubsub")
      yield* a!.release("first")
      // Whoever is first gives it back at once.
      yield* b!.release("second")
      yield* c!.release("third")
      yield* b!.fence("second")
      yield* c!.fence("third")
    }))

  test("is served again after an outage longer than every timeout, by processes that went through it", (server) =>
    Effect.gen(function* () {
      const [a, b] = yield* workersOn(server.url, 2)
      yield* a!.hold("first", { ttl })
      const first = yield* a!.fence("first")
      yield* b!.hold("second", { ttl })
      yield* waiting(server, 1)
      yield* server.kill
      assert.strictEqual((yield* a!.hears("first", "ended")).reason, "LockLost")
      assert.strictEqual((yield* b!.hears("second", "ended")).reason, "Unavailable")
      yield* b!.hold("meanwhile", { ttl })
      assert.strictEqual((yield* b!.hears("meanwhile", "ended")).reason, "Unavailable")
      yield* pause(2_000)
      yield* server.start
      yield* a!.hold("third", { ttl })
      assert.isAbove(yield* a!.fence("third"), first)
      yield* b!.hold("fourth", { ttl })
      yield* waiting(server, 1)
      yield* a!.release("third")
      yield* b!.fence("fourth", 5_000)
    }))

  test("stays with its holder when Redis is killed and restarted with its append-only file", (server) =>
    Effect.gen(function* () {
      const [a, b] = yield* workersOn(server.url, 2)
      yield* a!.hold("first", { ttl: 10_000 })
      const first = yield* a!.fence("first")
      yield* server.kill
      yield* server.start
      yield* b!.hold("second", { ttl: 10_000 })
      yield* waiting(server, 1)
      // Past a renewal.
      yield* pause(4_000)
      assert.isFalse(b!.has("second", "granted"))
      assert.isFalse(a!.has("first", "interrupted"))
      yield* a!.release("first")
      assert.isAbove(yield* b!.fence("second", 5_000), first)
      assert.isUndefined((yield* a!.hears("first", "ended")).reason)
    }))
})

const channels = (server: RedisServer.RedisServer) =>
  Effect.map(server.command("pubsub", "channels", "cohort:lock:*"), (names) => names as ReadonlyArray<string>)

describe("soak", () => {
  it.live("never two good leases while processes are killed and frozen", () => soak("redis", 8), 90_000)
})
