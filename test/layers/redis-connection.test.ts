/** The connections to Redis, on servers that are killed, frozen, cut off and failed over. */
import { type AddressInfo, createConnection, createServer, type Server } from "node:net"
import { inspect } from "node:util"
import { assert, describe, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Metric from "effect/Metric"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { readFileSync } from "node:fs"
import { Metrics } from "../../src/index.ts"
import { RedisConnection, RedisOptions } from "../../src/layers/redis/index.ts"
import * as RedisScript from "../../src/layers/redis/RedisScript.ts"
import { Unavailable } from "../../src/services/Reason.ts"
import * as Certificates from "../servers/certificates.ts"
import * as RedisSentinel from "../servers/RedisSentinel.ts"
import * as RedisServer from "../servers/RedisServer.ts"
import * as TcpProxy from "../servers/TcpProxy.ts"

type Connection = RedisConnection.RedisConnection["Service"]

/** The timeout of most connections here; what must end "in time" gets much longer. */
const timeout = 500
const inTime = "5 seconds"

const connect = (options: RedisOptions.RedisOptions) => RedisConnection.make({ timeout, ...options })

const server = RedisServer.make({ appendOnly: false })

/** A connection through a proxy. */
const proxied = (options: RedisOptions.RedisOptions = {}) =>
  Effect.gen(function* () {
    const redis = yield* server
    const proxy = yield* TcpProxy.make({ host: "127.0.0.1", port: redis.port })
    const connection = yield* connect({ url: `redis://127.0.0.1:${proxy.port}`, ...options })
    return { redis, proxy, connection }
  })

/** A port in front of a server from which 2 MB come in a second. */
const slow = (target: number) =>
  Effect.acquireRelease(
    Effect.callback<Server>((resume) => {
      const proxy = createServer((client) => {
        const upstream = createConnection(target, "127.0.0.1")
        client.on("error", () => undefined).on("close", () => upstream.destroy())
        upstream.on("error", () => undefined).on("close", () => client.destroy())
        client.pipe(upstream)
        upstream.on("data", (bytes) => {
          upstream.pause()
          client.write(bytes)
          setTimeout(() => upstream.resume(), bytes.length / 2_000)
        })
      })
      proxy.listen(0, "127.0.0.1", () => resume(Effect.succeed(proxy)))
    }),
    (proxy) => Effect.sync(() => proxy.close())
  ).pipe(Effect.map((proxy) => (proxy.address() as AddressInfo).port))

/** A port in front of a server where the first connections on which a word is said are lost, with what was said. */
const losing = (target: number, word: string, times: number) =>
  Effect.acquireRelease(
    Effect.callback<Server>((resume) => {
      let left = times
      const proxy = createServer((client) => {
        const upstream = createConnection(target, "127.0.0.1")
        client.on("error", () => undefined).on("close", () => upstream.destroySoon())
        upstream.on("error", () => undefined).on("close", () => client.destroy())
        upstream.pipe(client)
        client.on("data", (bytes) => {
          if (left === 0 || !bytes.includes(word)) return upstream.write(bytes)
          left--
          return client.destroy()
        })
      })
      proxy.listen(0, "127.0.0.1", () => resume(Effect.succeed(proxy)))
    }),
    (proxy) => Effect.sync(() => proxy.close())
  ).pipe(Effect.map((proxy) => (proxy.address() as AddressInfo).port))

/** Ends, however it ends, before long. */
const bounded = <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.timeoutOrElse(effect, {
    duration: inTime,
    orElse: () => Effect.die(new Error(`does not end within ${inTime}`))
  })

const unavailable = <A, R>(effect: Effect.Effect<A, unknown, R>): Effect.Effect<Unavailable, A, R> =>
  Effect.map(Effect.flip(bounded(effect)), (error) => {
    assert.instanceOf(error, Unavailable)
    assert.strictEqual(error.backend, "redis")
    return error
  })

const until = (condition: Effect.Effect<boolean, unknown>, what: string): Effect.Effect<void> =>
  Effect.gen(function* () {
    for (let i = 0; i < 1_000; i++) {
      if (yield* Effect.orDie(condition)) return
      yield* Effect.sleep("10 millis")
    }
    return yield* Effect.die(new Error(`never happened: ${what}`))
  })

const untilState = (connection: Connection, expected: Partial<RedisConnection.State>) =>
  until(
    Effect.map(connection.state, (state) =>
      Object.entries(expected).every(([link, one]) => state[link as keyof RedisConnection.State] === one)
    ),
    JSON.stringify(expected)
  )

const set = (connection: Connection, key: string, value: string) => connection.send("set", [key, value])
const get = (connection: Connection, key: string) => connection.send<string | null>("get", [key])

/** Subscribes, and collects messages and gaps in order. */
const listen = (connection: Connection, channel: string) =>
  Effect.suspend(() => {
    const events: Array<string> = []
    return Effect.as(
      connection.subscribe(
        channel,
        (message) => events.push(message),
        () => events.push("gap")
      ),
      events
    )
  })

/** How many connections are subscribed to a channel. */
const subscriptions = (redis: RedisServer.RedisServer, channel: string) =>
  Effect.map(redis.command("PUBSUB", "NUMSUB", channel), (reply) => Number((reply as ReadonlyArray<unknown>)[1]))

/** On the real clock, without the logs of what goes wrong on purpose. */
const test = <A, E>(name: string, body: () => Effect.Effect<A, E, Scope.Scope>): void =>
  it.live(name, () => Effect.provide(Effect.suspend(body), Logger.layer([])))

/** Runs with a log of its own. */
const logged = <A, E, R>(body: (logs: Array<string>) => Effect.Effect<A, E, R>) =>
  Effect.suspend(() => {
    const logs: Array<string> = []
    const logger = Logger.make((options) => {
      logs.push(inspect(options.message, { depth: 20 }), Cause.pretty(options.cause))
    })
    return Effect.provide(body(logs), Logger.layer([logger]))
  })

describe.concurrent("RedisConnection", () => {
  describe("while Redis is away", () => {
    test("making it fails within the timeout; lazy, its operations do, and succeed when Redis is there", () =>
      Effect.gen(function* () {
        const redis = yield* server
        yield* redis.kill
        const error = yield* unavailable(connect({ url: redis.url }))
        assert.include(error.message, "ECONNREFUSED")
        const connection = yield* connect({ url: redis.url, lazy: true })
        assert.deepStrictEqual(yield* connection.state, { commands: "idle", subscriptions: "idle" })
        yield* unavailable(get(connection, "k"))
        yield* unavailable(listen(connection, "c"))
        yield* unavailable(connection.run(RedisScript.make("return 1"), [], []))
        yield* unavailable(Stream.runDrain(connection.scan("*")))
        yield* unavailable(connection.publish("c", "m", true))
        yield* redis.start
        assert.strictEqual(yield* get(connection, "k"), null)
        yield* listen(connection, "c")
      }))

    test("a lazy connection is made by its first operation, whichever that is", () =>
      Effect.gen(function* () {
        const redis = yield* server
        const first = yield* connect({ url: redis.url, lazy: true })
        assert.deepStrictEqual(yield* Stream.runCollect(first.scan("*")), [[]])
        const second = yield* connect({ url: redis.url, lazy: true })
        yield* listen(second, "c")
        assert.deepStrictEqual(yield* second.state, { commands: "idle", subscriptions: "ready" })
      }))

    test("operations end within the timeout, whether it is frozen, black-holed or cut off; and work again after", () =>
      Effect.gen(function* () {
        const { connection, proxy, redis } = yield* proxied()
        const events = yield* listen(connection, "old")
        const operations = [
          get(connection, "k"),
          set(connection, "k", "v"),
          connection.send("get", ["k"], { retry: true }),
          connection.run(RedisScript.make("return 1"), [], []),
          connection.run(RedisScript.make("return 2", { retry: true }), [], []),
          connection.publish("old", "m", true),
          Stream.runDrain(connection.scan("*")),
          Effect.scoped(listen(connection, "new"))
        ]
        const ways = [
          { away: redis.freeze, back: redis.thaw },
          { away: proxy.blackhole, back: proxy.heal },
          { away: Effect.andThen(proxy.refuse, proxy.reset), back: proxy.heal },
          { away: redis.kill, back: redis.start }
        ]
        for (const { away, back } of ways) {
          yield* away
          // At first what is in flight, then what waits for a connection.
          for (let round = 0; round < 2; round++) {
            yield* Effect.forEach(operations, unavailable, { concurrency: "unbounded" })
          }
          yield* back
          yield* bounded(Effect.eventually(get(connection, "k")))
          yield* untilState(connection, { commands: "ready", subscriptions: "ready" })
          yield* until(
            Effect.sync(() => events.includes("gap")),
            "the gap"
          )
          events.length = 0
          yield* connection.publish("old", "after", true)
          yield* until(
            Effect.sync(() => events.length > 0),
            "a message"
          )
          assert.deepStrictEqual(events, ["after"])
        }
      }))

    test("an outage longer than every timeout and delay ends without a restart", () =>
      Effect.gen(function* () {
        const redis = yield* server
        const connection = yield* connect({ url: redis.url, timeout: "200 millis" })
        const events = yield* listen(connection, "c")
        yield* redis.kill
        yield* Effect.sleep("2 seconds")
        yield* unavailable(get(connection, "k"))
        yield* redis.start
        yield* bounded(Effect.retry(set(connection, "k", "v"), Schedule.spaced("10 millis")))
        yield* until(
          Effect.sync(() => events.includes("gap")),
          "the gap"
        )
        yield* connection.publish("c", "m", true)
        yield* until(
          Effect.sync(() => events.length === 2),
          "the message"
        )
        assert.deepStrictEqual(events, ["gap", "m"])
      }))

    test("an operation that waits is served as soon as Redis is back, however long the Schedule takes", () =>
      Effect.gen(function* () {
        // It allows one attempt, in an hour: those that somebody waits for do not count.
        const reconnect = Schedule.max([Schedule.spaced("1 hour"), Schedule.recurs(1)])
        const { connection, proxy } = yield* proxied({ timeout: "3 seconds", reconnect })
        yield* listen(connection, "c")
        yield* Effect.andThen(proxy.refuse, proxy.reset)
        yield* untilState(connection, { commands: "reconnecting", subscriptions: "reconnecting" })
        const waiting = yield* Effect.forkChild(
          Effect.all([set(connection, "k", "v"), listen(connection, "d")], { concurrency: "unbounded" })
        )
        yield* Effect.sleep("1 second")
        yield* proxy.heal
        yield* Fiber.join(waiting)
        // The one takes the other along.
        yield* proxy.reset
        yield* untilState(connection, { commands: "reconnecting", subscriptions: "reconnecting" })
        yield* get(connection, "k")
        yield* untilState(connection, { commands: "ready", subscriptions: "ready" })
      }))

    test("while it loads its data it is asked again and again whether it is there", () =>
      Effect.gen(function* () {
        const redis = yield* RedisServer.make({
          args: ["--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024"]
        })
        const connection = yield* connect({ url: redis.url, timeout: "2 seconds" })
        // Most of the time goes to small keys, and most of the data is in large ones: it expects to load for hours.
        const fill =
          "for i = 1, tonumber(ARGV[1]) do redis.call('set', ARGV[2] .. i, string.rep('x', tonumber(ARGV[3]))) end"
        yield* connection.run(RedisScript.make(fill), [], [2_500, "small", 1])
        yield* connection.run(RedisScript.make(fill), [], [20, "large", 1_000_000])
        yield* redis.kill
        const waiting = yield* Effect.forkChild(Effect.eventually(get(connection, "small1")))
        yield* redis.start
        assert.strictEqual(yield* Effect.timeout(Fiber.join(waiting), "2 seconds"), "x")
      }))

    test("over a slow network operations end within the timeout, too, and the answers that come late are nobody's", () =>
      Effect.gen(function* () {
        const redis = yield* server
        const port = yield* slow(redis.port)
        const connection = yield* connect({ url: `redis://127.0.0.1:${port}` })
        yield* set(connection, "large", "x".repeat(200_000))
        yield* set(connection, "small", "v")
        const started = performance.now()
        const large = yield* Effect.forEach(Array.from({ length: 20 }), () => Effect.exit(get(connection, "large")), {
          concurrency: "unbounded"
        })
        assert.isBelow(performance.now() - started, 2 * timeout)
        assert.isTrue(Exit.isSuccess(large[0]!))
        assert.isTrue(Exit.isFailure(large[19]!))
        assert.strictEqual(yield* Effect.eventually(get(connection, "small")), "v")
      }))

    test("a connection that died in silence is noticed without an operation", () =>
      Effect.gen(function* () {
        const { connection, proxy } = yield* proxied()
        yield* listen(connection, "c")
        yield* proxy.blackhole
        yield* untilState(connection, { commands: "reconnecting", subscriptions: "reconnecting" })
        yield* proxy.heal
        yield* untilState(connection, { commands: "ready", subscriptions: "ready" })
      }))
  })

  describe("what the connection is lost under", () => {
    test("fails at once if it had left, is repeated if it may be", () =>
      Effect.gen(function* () {
        const { connection, proxy } = yield* proxied({ timeout: "10 seconds" })
        yield* proxy.blackhole
        const once = yield* Effect.forkChild(Effect.exit(connection.send("incr", ["once"])))
        const twice = yield* Effect.forkChild(connection.send("incr", ["twice"], { retry: true }))
        yield* Effect.sleep("100 millis")
        assert.isUndefined(once.pollUnsafe())
        yield* Effect.andThen(proxy.refuse, proxy.reset)
        assert.isTrue(Exit.isFailure(yield* bounded(Fiber.join(once))))
        assert.isUndefined(twice.pollUnsafe())
        yield* proxy.heal
        assert.strictEqual(yield* bounded(Fiber.join(twice)), 1)
      }))

    test("is sent on the next connection if it had not left, once and in order", () =>
      Effect.gen(function* () {
        const { connection, proxy } = yield* proxied()
        for (let round = 0; round < 20; round++) {
          // Its end has reached this process, which has not read it yet.
          yield* proxy.reset
          const replies = yield* Effect.forEach(
            Array.from({ length: 10 }, (_, i) => i),
            (i) => connection.send("rpush", [`list ${round}`, i]),
            { concurrency: "unbounded" }
          )
          assert.deepStrictEqual(replies, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
          const list = yield* connection.send("lrange", [`list ${round}`, 0, -1])
          assert.deepStrictEqual(list, ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"])
        }
      }))

    test("is sent again if a master refused it that is none any longer", () =>
      Effect.gen(function* () {
        const redis = yield* server
        const connection = yield* connect({ url: redis.url, timeout: "3 seconds" })
        yield* redis.command("REPLICAOF", "127.0.0.1", "1")
        const script = RedisScript.make("return redis.call('incr', KEYS[1])")
        // What Redis 6.2 says of a script.
        const old = RedisScript.make(
          `if string.find(redis.call('info', 'replication'), 'role:master') then return redis.call('incr', KEYS[1]) end
          return redis.error_reply("ERR Error running script (call to f_0): @user_script:1: @user_script: 1: " ..
            "-READONLY You can't write against a read only replica.")`
        )
        const waiting = yield* Effect.forkChild(
          Effect.all(
            [connection.send("incr", ["a"]), connection.run(script, ["b"], []), connection.run(old, ["c"], [])],
            { concurrency: "unbounded" }
          )
        )
        yield* Effect.sleep("300 millis")
        assert.isUndefined(waiting.pollUnsafe())
        yield* redis.command("REPLICAOF", "NO", "ONE")
        assert.deepStrictEqual(yield* Fiber.join(waiting), [1, 1, 1])
      }))

    test("is not run late, after what comes on the next connection", () =>
      Effect.gen(function* () {
        const { connection, proxy } = yield* proxied()
        yield* set(connection, "k", "first")
        // What is written stays on its way for longer than the connection is trusted.
        yield* proxy.stall
        yield* unavailable(set(connection, "k", "late"))
        yield* set(connection, "k", "last")
        yield* proxy.heal
        yield* Effect.sleep("100 millis")
        assert.strictEqual(yield* get(connection, "k"), "last")
      }))

    test("is not run late either when the next connection is lost as soon as it is made", () =>
      Effect.gen(function* () {
        const redis = yield* server
        const proxy = yield* TcpProxy.make({ host: "127.0.0.1", port: redis.port })
        const url = `redis://127.0.0.1:${yield* losing(proxy.port, "kill", 1)}`
        const connection = yield* connect({ url })
        yield* set(connection, "k", "first")
        yield* proxy.stall
        yield* unavailable(set(connection, "k", "late"))
        yield* Effect.retry(set(connection, "k", "last"), Schedule.spaced("100 millis"))
        yield* proxy.heal
        yield* Effect.sleep("100 millis")
        assert.strictEqual(yield* get(connection, "k"), "last")
      }))

    test("is not sent if whoever asked is gone", () =>
      Effect.gen(function* () {
        const { connection, proxy } = yield* proxied()
        yield* Effect.andThen(proxy.refuse, proxy.reset)
        yield* untilState(connection, { commands: "reconnecting" })
        const script = RedisScript.make("return redis.call('incr', KEYS[1])", { retry: true })
        const abandoned = [
          yield* Effect.forkChild(set(connection, "abandoned", "v"), { startImmediately: true }),
          yield* Effect.forkChild(connection.run(script, ["abandoned"], []), { startImmediately: true })
        ]
        const kept = yield* Effect.forkChild(set(connection, "kept", "v"), { startImmediately: true })
        yield* Fiber.interruptAll(abandoned)
        yield* proxy.heal
        yield* Fiber.join(kept)
        assert.deepStrictEqual(yield* connection.send("mget", ["abandoned", "kept"]), [null, "v"])
      }))
  })

  describe("reconnecting", () => {
    test("ends with its Schedule: closed for good, told at once, and logged", () =>
      logged((logs) =>
        Effect.gen(function* () {
          const { connection, proxy } = yield* proxied({
            timeout: "20 seconds",
            reconnect: Schedule.max([Schedule.spaced("20 millis"), Schedule.recurs(3)])
          })
          yield* listen(connection, "c")
          yield* Effect.andThen(proxy.refuse, proxy.reset)
          yield* untilState(connection, { commands: "closed", subscriptions: "closed" })
          yield* proxy.heal
          assert.include((yield* unavailable(get(connection, "k"))).message, "closed")
          assert.include((yield* unavailable(listen(connection, "d"))).message, "closed")
          yield* unavailable(connection.publish("c", "m", true))
          yield* unavailable(Stream.runDrain(connection.scan("*")))
          assert.lengthOf(
            logs.filter((log) => log.includes("given up")),
            2
          )
        })
      ))

    test("starts its Schedule again after every success", () =>
      Effect.gen(function* () {
        const { connection, proxy } = yield* proxied({
          reconnect: Schedule.max([Schedule.spaced("20 millis"), Schedule.recurs(3)])
        })
        for (let round = 0; round < 6; round++) {
          yield* proxy.reset
          yield* untilState(connection, { commands: "reconnecting" })
          yield* untilState(connection, { commands: "ready" })
        }
      }))

    test("its states are a stream, and metrics", () =>
      Effect.gen(function* () {
        const { connection, proxy } = yield* proxied({ lazy: true })
        const seen: Array<RedisConnection.State> = []
        yield* Effect.forkScoped(Stream.runForEach(connection.changes, (state) => Effect.sync(() => seen.push(state))))
        const roles = ["commands", "subscriptions"] as const
        const metrics = Effect.forEach(roles, (role) => {
          const attributes = { backend: "redis", role }
          return Effect.all([
            Metric.value(Metric.withAttributes(Metrics.connectionUp, attributes)),
            Metric.value(Metric.withAttributes(Metrics.connectionsLost, attributes))
          ]).pipe(Effect.map(([up, lost]) => [up.value, lost.count]))
        })
        yield* until(
          Effect.sync(() => seen.length > 0),
          "the first state"
        )
        yield* get(connection, "k")
        yield* listen(connection, "c")
        assert.deepStrictEqual(yield* metrics, [
          [1, 0],
          [1, 0]
        ])
        yield* Effect.andThen(proxy.refuse, proxy.reset)
        yield* untilState(connection, { commands: "reconnecting", subscriptions: "reconnecting" })
        assert.deepStrictEqual(yield* metrics, [
          [0, 1],
          [0, 1]
        ])
        yield* proxy.heal
        yield* untilState(connection, { commands: "ready", subscriptions: "ready" })
        assert.deepStrictEqual(yield* metrics, [
          [1, 1],
          [1, 1]
        ])
        for (const role of roles) {
          const states = seen.map((state) => state[role])
          assert.deepStrictEqual(
            states.filter((state, i) => state !== states[i - 1]),
            ["idle", "connecting", "ready", "reconnecting", "ready"]
          )
        }
      }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))

    test("closing leaves no connection, also while it is being made, and no operation hanging", () =>
      Effect.gen(function* () {
        const { connection, redis, proxy } = yield* proxied()
        assert.strictEqual(yield* get(connection, "k"), null)
        const clients = Effect.map(
          redis.command("CLIENT", "LIST"),
          (list) => String(list).split("name=closing").length - 1
        )
        for (const during of [Effect.void, proxy.blackhole, proxy.refuse]) {
          yield* proxy.heal
          const scope = yield* Scope.make()
          const url = `redis://127.0.0.1:${proxy.port}`
          const other = yield* Scope.provide(connect({ url, name: "closing", lazy: true }), scope)
          yield* Scope.provide(listen(other, "c"), scope)
          assert.strictEqual(yield* get(other, "k"), null)
          assert.strictEqual(yield* clients, 2)
          yield* during
          const pending = yield* Effect.forkChild(Effect.exit(get(other, "k")), { startImmediately: true })
          yield* bounded(Scope.close(scope, Exit.void))
          yield* bounded(Fiber.join(pending))
          yield* unavailable(get(other, "k"))
          yield* unavailable(listen(other, "c"))
          yield* proxy.reset
          yield* until(
            Effect.map(clients, (count) => count === 0),
            "they are closed"
          )
        }
      }))
  })

  describe("subscriptions", () => {
    test("CLIENT KILL costs each subscriber one gap, and no subscription is made twice", () =>
      Effect.gen(function* () {
        const redis = yield* server
        const connection = yield* connect({ url: redis.url })
        const lists = [yield* listen(connection, "a"), yield* listen(connection, "a"), yield* listen(connection, "b")]
        for (let round = 1; round <= 3; round++) {
          yield* redis.command("CLIENT", "KILL", "TYPE", "pubsub")
          yield* until(
            Effect.sync(() => lists.every((events) => events.includes("gap"))),
            "the gaps"
          )
          yield* redis.command("PUBLISH", "a", `to a ${round}`)
          yield* redis.command("PUBLISH", "b", `to b ${round}`)
          yield* until(
            Effect.sync(() => lists.every((events) => events.length === 2)),
            "the messages"
          )
          assert.deepStrictEqual(
            lists.map((events) => events.splice(0)),
            [
              ["gap", `to a ${round}`],
              ["gap", `to a ${round}`],
              ["gap", `to b ${round}`]
            ]
          )
        }
      }))

    test("of one channel share it; the last one to leave takes it back, and one that comes meanwhile keeps it", () =>
      Effect.gen(function* () {
        const redis = yield* server
        const connection = yield* connect({ url: redis.url })
        const commands = (name: string) =>
          Effect.map(redis.command("INFO", "commandstats"), (stats) =>
            Number(new RegExp(`cmdstat_${name}:calls=(\\d+)`).exec(String(stats))?.[1] ?? 0)
          )
        const scopes = yield* Effect.forEach([1, 2, 3], () => Scope.make())
        const lists = yield* Effect.forEach(scopes, (scope) => Scope.provide(listen(connection, "c"), scope), {
          concurrency: "unbounded"
        })
        assert.strictEqual(yield* commands("subscribe"), 1)
        yield* Scope.close(scopes[0]!, Exit.void)
        yield* redis.command("PUBLISH", "c", "one")
        yield* until(
          Effect.sync(() => lists[1]!.length === 1 && lists[2]!.length === 1),
          "the message"
        )
        assert.strictEqual(yield* commands("unsubscribe"), 0)
        yield* Scope.close(scopes[1]!, Exit.void)
        // Left and joined again in one turn.
        const again = yield* Effect.andThen(Scope.close(scopes[2]!, Exit.void), listen(connection, "c"))
        assert.strictEqual(yield* subscriptions(redis, "c"), 1)
        yield* redis.command("PUBLISH", "c", "two")
        yield* until(
          Effect.sync(() => again.length === 1),
          "the message after"
        )
        assert.deepStrictEqual([...lists, again], [[], ["one"], ["one"], ["two"]])
        yield* Effect.scoped(listen(connection, "d"))
        yield* until(
          Effect.map(subscriptions(redis, "d"), (count) => count === 0),
          "taken back"
        )
      }))

    test("a publish to oneself waits for a subscription that was lost; what is published later stays behind it", () =>
      Effect.gen(function* () {
        const { connection, proxy, redis } = yield* proxied({ timeout: "5 seconds" })
        const other = yield* connect({ url: redis.url })
        const events = yield* listen(connection, "c")
        for (let round = 0; round < 20; round++) {
          if (round % 2 === 0) {
            yield* redis.command("CLIENT", "KILL", "TYPE", "pubsub")
            yield* untilState(connection, { subscriptions: "reconnecting" })
          }
          const order = yield* listen(other, "c")
          // Both connections, of which either may be back first.
          if (round % 2 === 1) yield* proxy.reset
          yield* Effect.all(
            [
              connection.publish("c", "first", true),
              connection.publish("c", "second", false),
              set(connection, "k", "v")
            ],
            { concurrency: "unbounded" }
          )
          yield* until(
            Effect.sync(() => events.length === 3 && order.length >= 2),
            "both messages"
          )
          assert.deepStrictEqual(events.splice(0), ["gap", "first", "second"])
          assert.deepStrictEqual(order.slice(-2), ["first", "second"])
        }
      }))

    test("one that Redis refuses fails typed, and says why", () =>
      Effect.gen(function* () {
        const redis = yield* server
        yield* redis.command("ACL", "SETUSER", "narrow", "on", ">pw", "+@all", "~*", "resetchannels", "&mine")
        const connection = yield* connect({ url: redis.url, username: "narrow", password: Redacted.make("pw") })
        assert.include((yield* unavailable(listen(connection, "theirs"))).message, "NOPERM")
        yield* listen(connection, "mine")
      }))

    test("one that Redis refuses keeps no other from being made again, and is made when it does no longer", () =>
      logged((logs) =>
        Effect.gen(function* () {
          const redis = yield* server
          const connection = yield* connect({ url: redis.url })
          const mine = yield* listen(connection, "mine")
          const theirs = yield* listen(connection, "theirs")
          // Closes the connection, too.
          yield* redis.command("ACL", "SETUSER", "default", "resetchannels", "&mine")
          yield* until(
            Effect.sync(() => mine.includes("gap")),
            "the gap"
          )
          yield* connection.publish("mine", "m", true)
          yield* until(
            Effect.sync(() => mine.includes("m")),
            "the message"
          )
          assert.deepStrictEqual(theirs, [])
          assert.lengthOf(
            logs.filter((log) => log.includes("refuses a subscription")),
            1
          )
          yield* redis.command("ACL", "SETUSER", "default", "allchannels")
          yield* until(
            Effect.sync(() => theirs.includes("gap")),
            "the other gap"
          )
        })
      ))
  })

  describe("scripts", () => {
    test("are sent in full once, and again after SCRIPT FLUSH and a restart", () =>
      Effect.gen(function* () {
        const redis = yield* server
        const connection = yield* connect({ url: redis.url })
        const script = RedisScript.make("return { KEYS[1], ARGV[1] }", { retry: true })
        const run = connection.run(script, ["k"], ["é"])
        for (const harm of [Effect.void, redis.command("SCRIPT", "FLUSH"), Effect.andThen(redis.kill, redis.start)]) {
          yield* harm
          assert.deepStrictEqual(yield* run, ["k", "é"])
          assert.deepStrictEqual(yield* run, ["k", "é"])
        }
        const error = yield* unavailable(connection.run(RedisScript.make("return redis.call('nonsense')"), [], []))
        assert.instanceOf(error.cause, Error)
      }))
  })

  describe("TLS", () => {
    test("checks the certificate; what it does not trust is refused within the timeout", () =>
      Effect.gen(function* () {
        const certificates = yield* Certificates.make
        const redis = yield* RedisServer.make({ appendOnly: false, tls: certificates })
        const ca = readFileSync(certificates.ca)
        const connection = yield* connect({ url: redis.url, tls: { ca } })
        yield* set(connection, "k", "v")
        yield* listen(connection, "c")
        const { ca: other } = yield* Certificates.make
        for (const tls of [true, { ca: readFileSync(other) }, false])
          yield* unavailable(connect({ url: redis.url, tls }))
        // Killed and started again, it is trusted again.
        yield* Effect.andThen(redis.kill, redis.start)
        yield* bounded(Effect.eventually(get(connection, "k")))
      }))

    test("of the master, where the Sentinels have none", () =>
      Effect.gen(function* () {
        const certificates = yield* Certificates.make
        const redis = yield* RedisServer.make({ appendOnly: false, tls: certificates })
        const sentinel = yield* RedisServer.make({
          config: `sentinel monitor m 127.0.0.1 ${redis.port} 1\n`,
          args: ["--sentinel"]
        })
        const connection = yield* connect({
          tls: { ca: readFileSync(certificates.ca) },
          sentinel: { master: "m", nodes: [{ host: "127.0.0.1", port: sentinel.port }], tls: false },
          timeout: "3 seconds"
        })
        yield* set(connection, "k", "v")
      }))
  })

  describe("credentials", () => {
    const secret = "s3cret-pa55"

    test("are in no error, log or text", () =>
      logged((logs) =>
        Effect.gen(function* () {
          const redis = yield* RedisServer.make({ appendOnly: false, args: ["--requirepass", "right"] })
          const url = new URL(redis.url)
          url.password = secret
          const texts: Array<string> = []
          const wrong: ReadonlyArray<RedisOptions.RedisOptions> = [
            { url: url.href },
            { url: Redacted.make(url.href) },
            { url: redis.url, password: Redacted.make(secret) },
            { url: redis.url, username: "someone", password: Redacted.make(secret) },
            { cluster: { nodes: [{ host: "127.0.0.1", port: redis.port }] }, password: Redacted.make(secret) },
            {
              sentinel: {
                master: "m",
                nodes: [{ host: "127.0.0.1", port: redis.port }],
                password: Redacted.make(secret)
              },
              password: Redacted.make(secret)
            }
          ]
          const collect = Effect.fnUntraced(function* (options: RedisOptions.RedisOptions) {
            const lazy = yield* connect({ ...options, lazy: true })
            const failing: ReadonlyArray<Effect.Effect<unknown, unknown, Scope.Scope>> = [
              connect(options),
              get(lazy, "k"),
              listen(lazy, "c")
            ]
            for (const one of yield* Effect.forEach(failing, unavailable, { concurrency: "unbounded" })) {
              texts.push(
                String(one),
                one.message,
                one.stack ?? "",
                inspect(one, { depth: 20, showHidden: true }),
                JSON.stringify(one),
                Cause.pretty(Cause.fail(one))
              )
            }
            texts.push(inspect(lazy, { depth: 2 }), inspect(options), JSON.stringify(options))
          })
          yield* Effect.forEach(wrong, collect, { concurrency: "unbounded" })
          assert.isAbove(logs.length, 0)
          // What the caller wrote into a plain url is the caller's.
          for (const text of [...texts, ...logs].filter((text) => !text.includes(url.href)))
            assert.notInclude(text, secret)
          assert.isTrue(texts.some((text) => text.includes("WRONGPASS")))
          const right = yield* connect({ url: redis.url, password: Redacted.make("right") })
          yield* set(right, "k", "v")
        })
      ))
  })

  describe("Sentinel", () => {
    test("follows the master, handed over or killed; a sentinel that is silent hangs nothing", () =>
      Effect.gen(function* () {
        const sentinel = yield* RedisSentinel.make
        const nodes = [{ host: "127.0.0.1", port: sentinel.sentinel.port }]
        const options = { sentinel: { master: sentinel.name, nodes }, timeout: "1 second" } as const
        const connection = yield* connect(options)
        const events = yield* listen(connection, "c")
        const works = (how: string) =>
          Effect.gen(function* () {
            const master = yield* sentinel.master
            // What the old master took last is lost with it.
            yield* until(
              Effect.gen(function* () {
                yield* set(connection, how, "v")
                return (yield* master.command("GET", how)) === "v"
              }).pipe(Effect.orElseSucceed(() => false)),
              `a write after ${how}`
            )
            yield* until(
              Effect.map(subscriptions(master, "c"), (count) => count === 1),
              `subscribed after ${how}`
            )
            yield* connection.publish("c", how, true)
            yield* until(
              Effect.sync(() => events.includes(how)),
              `the message after ${how}`
            )
          })
        yield* works("the start")
        yield* sentinel.failOver
        yield* works("a failover")
        yield* sentinel.killMaster
        yield* works("a death")
        assert.strictEqual(events.filter((event) => event === "gap").length, 2)
        // One that takes connections and never answers is given up, so that the next attempt finds it well.
        const proxy = yield* TcpProxy.make(nodes[0]!)
        yield* proxy.blackhole
        const late = yield* connect({
          ...options,
          lazy: true,
          sentinel: { master: sentinel.name, nodes: [{ host: "127.0.0.1", port: proxy.port }] }
        })
        yield* unavailable(get(late, "k"))
        yield* proxy.heal
        yield* bounded(Effect.retry(get(late, "k"), Schedule.spaced("10 millis")))
      }))
  })

  describe("options", () => {
    test("what is wrong with them names the field, and no secret", () =>
      Effect.gen(function* () {
        const node = { host: "h", port: 1 }
        const wrong: ReadonlyArray<readonly [string, RedisOptions.RedisOptions]> = [
          ["url", { url: "not a url with s3cret" }],
          ["url", { url: "http://user:s3cret@host" }],
          ["url", { url: "redis://user:s3cret@host/name" }],
          ["url", { url: "redis://user:s3cret%@host" }],
          ["url", { url: Redacted.make("s3cret") }],
          ["url", { url: 5 as never }],
          ["db", { db: -1 }],
          ["db", { db: 1.5 }],
          ["db", { db: 1, cluster: { nodes: [node] } }],
          ["timeout", { timeout: 0 }],
          ["timeout", { timeout: Number.NaN }],
          ["timeout", { timeout: "soon" as never }],
          ["sentinel", { sentinel: { master: "m", nodes: [node] }, cluster: { nodes: [node] } }],
          ["sentinel.master", { sentinel: { master: "", nodes: [node] } }],
          ["sentinel.nodes", { sentinel: { master: "m", nodes: [] } }],
          ["cluster.nodes", { cluster: { nodes: [] } }],
          ["cluster.nodes.host", { cluster: { nodes: [{ host: "" }] } }],
          ["cluster.nodes.port", { cluster: { nodes: [{ host: "h", port: 0 }] } }],
          ['natMap["a:1"].host', { natMap: { "a:1": { host: "" } } }]
        ]
        for (const [field, options] of wrong) {
          const error = yield* Effect.flip(RedisConnection.make(options))
          assert.strictEqual(error._tag, "InvalidInput", field)
          assert.strictEqual(error._tag === "InvalidInput" && error.field, field)
          assert.notInclude(inspect(error, { depth: 20 }), "s3cret")
        }
      }))

    it.effect("come from the environment", () =>
      Effect.gen(function* () {
        const from = (env: Record<string, string>) => RedisOptions.config.parse(ConfigProvider.fromEnv({ env }))
        assert.deepStrictEqual(yield* from({}), {})
        const full = yield* from({
          REDIS_URL: "redis://host:1/2",
          REDIS_USERNAME: "me",
          REDIS_PASSWORD: "s3cret",
          REDIS_TLS: "true",
          REDIS_TIMEOUT: "2 seconds"
        })
        assert.notInclude(inspect(full, { depth: 20 }), "s3cret")
        assert.isTrue(Redacted.isRedacted(full.url) && Redacted.value(full.url) === "redis://host:1/2")
        assert.strictEqual(full.password && Redacted.value(full.password), "s3cret")
        assert.strictEqual(full.username, "me")
        assert.isTrue(full.tls)
        const sentinels = yield* from({ REDIS_SENTINELS: "a:1, b,[::1]:3", REDIS_SENTINEL_MASTER: "main" })
        assert.deepStrictEqual(sentinels.sentinel, {
          master: "main",
          nodes: [
            { host: "a", port: 1 },
            { host: "b", port: undefined },
            { host: "::1", port: 3 }
          ]
        })
        const cluster = yield* from({ REDIS_CLUSTER: "a:1,b:2" })
        assert.deepStrictEqual(cluster.cluster, {
          nodes: [
            { host: "a", port: 1 },
            { host: "b", port: 2 }
          ]
        })
        assert.instanceOf(yield* Effect.flip(from({ REDIS_TIMEOUT: "soon" })), Config.ConfigError)
      })
    )

    test("the layer of the environment connects", () =>
      Effect.gen(function* () {
        const redis = yield* server
        const provider = ConfigProvider.fromEnv({ env: { REDIS_URL: redis.url } })
        const context = yield* Layer.build(Layer.provide(RedisConnection.layerConfig, ConfigProvider.layer(provider)))
        assert.strictEqual(
          yield* Effect.provide(
            RedisConnection.RedisConnection.use((redis) => redis.send("ping", [])),
            context
          ),
          "PONG"
        )
      }))

    test("url: host, port, user, password and database; names of any kind are kept by Redis as they are", () =>
      Effect.gen(function* () {
        const redis = yield* server
        yield* redis.command("ACL", "SETUSER", "u@ser", "on", ">p:w/d", "~*", "&*", "+@all")
        const url = new URL(redis.url)
        url.username = "u@ser"
        url.password = "p:w/d"
        url.pathname = "/3"
        const connection = yield* connect({ url: url.href, name: "me" })
        const info = yield* connection.send<string>("client", ["info"])
        assert.include(info, "name=me ")
        assert.include(info, "db=3 ")
        assert.include(info, "user=u@ser ")
        yield* set(connection, "é🎉", "ü")
        assert.strictEqual(yield* get(connection, "é🎉"), "ü")
        assert.deepStrictEqual(yield* Stream.runCollect(connection.scan("é*")), [["é🎉"]])
      }))
  })

  test("a database that is not there is none, and not another", () =>
    Effect.gen(function* () {
      const redis = yield* server
      assert.include((yield* unavailable(connect({ url: redis.url, db: 99 }))).message, "out of range")
      const lazy = yield* connect({ url: redis.url, db: 99, lazy: true })
      yield* unavailable(set(lazy, "k", "v"))
      yield* unavailable(listen(lazy, "c"))
      assert.strictEqual(yield* redis.command("DBSIZE"), 0)
    }))

  test("a wrong password is told of, and not that there is no database without one", () =>
    Effect.gen(function* () {
      // Where there is no HELLO, the password is not asked for before the database.
      const redis = yield* RedisServer.make({ appendOnly: false, config: 'rename-command HELLO ""' })
      yield* redis.command("CONFIG", "SET", "requirepass", "secret")
      const error = yield* unavailable(connect({ url: redis.url, password: Redacted.make("wrong"), db: 1 }))
      assert.include(error.message, "WRONGPASS")
      assert.include((yield* unavailable(connect({ url: redis.url, db: 1 }))).message, "NOAUTH")
    }))

  test("dedicated gives a client of its own, which may block for longer than the timeout", () =>
    Effect.gen(function* () {
      const redis = yield* server
      const connection = yield* connect({ url: redis.url })
      const client = yield* Effect.acquireRelease(Effect.sync(connection.dedicated), (client) =>
        Effect.sync(() => client.disconnect())
      )
      yield* Effect.promise(() => client.connect())
      const blocked = client.blpop("list", 10)
      yield* Effect.sleep(2 * timeout)
      yield* connection.send("rpush", ["list", "v"])
      assert.deepStrictEqual(yield* Effect.promise(() => blocked), ["list", "v"])
    }))
})

/** Not beside others: this process stands still meanwhile. */
describe("RedisConnection, in a process that is busy", () => {
  test("a sign of life that is due when a command is asked for does not take its answer", () =>
    Effect.gen(function* () {
      const redis = yield* server
      const connection = yield* connect({ url: redis.url, timeout: "200 millis" })
      yield* set(connection, "k", "v")
      yield* listen(connection, "c")
      // Publishing to oneself waits for a subscription that does not come.
      yield* redis.command("ACL", "SETUSER", "default", "resetchannels")
      yield* untilState(connection, { subscriptions: "reconnecting" })
      for (let round = 0; round < 3; round++) {
        const given = yield* Effect.forkChild(
          Effect.andThen(unavailable(connection.publish("c", "m", true)), get(connection, "k")),
          { startImmediately: true }
        )
        // Its end, at which the command is asked for, and a sign of life fall into one turn of the event loop.
        yield* Effect.sleep("190 millis")
        for (const end = performance.now() + 110; performance.now() < end; );
        assert.strictEqual(yield* Fiber.join(given), "v")
      }
    }))

  test("what is too long for a text fails typed, and nothing with it", () =>
    Effect.gen(function* () {
      const redis = yield* server
      const connection = yield* connect({ url: redis.url })
      const long = "x".repeat(2 ** 24)
      const [before, tooLong, after] = yield* Effect.all(
        [
          set(connection, "before", "v"),
          Effect.exit(
            connection.send(
              "mset",
              Array.from({ length: 34 }, () => long)
            )
          ),
          get(connection, "before")
        ],
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual([before, after], ["OK", "v"])
      assert.include((yield* unavailable(tooLong)).message, "Invalid string length")
    }))
})
