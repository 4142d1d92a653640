import { assert, describe, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import { Cohort, EventQueue, Job } from "../../src/index.ts"
import * as Scripts from "../../src/layers/redis/RedisEventQueueScripts.ts"
import { suite } from "../../src/testing/contracts/queue.ts"
import * as RedisServer from "../servers/RedisServer.ts"
import * as TcpProxy from "../servers/TcpProxy.ts"
import { redis } from "./redis.ts"

suite(redis, { propertyRuns: 20 })

const Task = Job.make("task", Schema.Struct({ n: Schema.Number }))

const until = (what: string, condition: () => boolean) =>
  Effect.promise(() => RedisServer.waitUntil(condition, () => `never: ${what}`, 10_000))

/** Two instances on a server of the test's own. */
const inside = Effect.gen(function* () {
  const server = yield* RedisServer.make()
  const instance = Effect.map(
    Layer.build(Cohort.layerRedis({ url: server.url })),
    (context) =>
      <A, E, R>(effect: Effect.Effect<A, E, R>) =>
        Effect.orDie(Effect.provide(effect, context))
  )
  return { server, a: yield* instance, b: yield* instance }
})

/** How often a command was called, by scripts as well. */
const callsOf = (server: RedisServer.RedisServer, command: string) =>
  Effect.map(server.command("info", "commandstats"), (text) =>
    Number(new RegExp(`^cmdstat_${command}:calls=(\\d+)`, "m").exec(String(text))?.[1] ?? 0)
  )

const isIdle = (server: RedisServer.RedisServer) =>
  Effect.repeat(server.command("zcard", "cohort:{app:queue:task}:idle"), {
    until: (workers) => workers === 1,
    schedule: Schedule.spaced("10 millis")
  })

const info = (server: RedisServer.RedisServer, section: string, field: string) =>
  Effect.map(server.command("info", section), (text) =>
    Number(new RegExp(`^${field}:(.*)$`, "m").exec(String(text))![1])
  )

describe("EventQueue on Redis, seen from inside", () => {
  it.live("a waiting job of 200 bytes takes less than 600 bytes of Redis", () =>
    Effect.gen(function* () {
      const { a, server } = yield* inside
      const Text = Job.make("task", Schema.String)
      const publish = (n: number) =>
        a(
          Effect.forEach(Array.from({ length: n }), () => EventQueue.publish(Text, "x".repeat(198)), {
            concurrency: 200,
            discard: true
          })
        )
      yield* publish(1_000)
      const before = yield* info(server, "memory", "used_memory_dataset")
      yield* publish(20_000)
      const bytes = ((yield* info(server, "memory", "used_memory_dataset")) - before) / 20_000
      assert.isBelow(bytes, 600)
      assert.isAbove(bytes, 200, "they are there")
    })
  )

  it.live("large jobs that are published at once go out one by one: together they may be too long for a text", () =>
    Effect.gen(function* () {
      const { a, server } = yield* inside
      const Text = Job.make("task", Schema.String)
      const publish = (length: number) =>
        a(Effect.forEach([1, 2, 3], () => EventQueue.publish(Text, "x".repeat(length)), { concurrency: "unbounded" }))
      yield* publish(1)
      yield* server.command("CONFIG", "RESETSTAT")
      yield* publish(1)
      yield* publish(5 * 1024 * 1024)
      const stats = String(yield* server.command("INFO", "commandstats"))
      assert.strictEqual(Number(/^cmdstat_evalsha:calls=(\d+)/m.exec(stats)![1]), 1 + 3)
    })
  )

  it.live("jobs that were read ahead do not wait behind a handler that takes its time", () =>
    Effect.gen(function* () {
      const { a, b } = yield* inside
      const ended = new Map<number, number>()
      const slow = yield* Deferred.make<void>()
      // The first one reads ahead while it is quick, then meets the slow one.
      for (let n = 0; n < 400; n++) yield* a(EventQueue.publish(Task, { n }))
      const options = {
        process: ({ n }: { readonly n: number }, { attempt }: EventQueue.JobInfo) =>
          Effect.andThen(
            n === 200 ? Deferred.await(slow) : Effect.void,
            Effect.sync(() => ended.set(n, attempt))
          )
      }
      yield* a(EventQueue.subscribe(Task, options))
      yield* until("the first is at the slow one", () => ended.size >= 200)
      yield* b(EventQueue.subscribe(Task, options))
      yield* until("all but one have ended", () => ended.size === 399)
      yield* Deferred.succeed(slow, undefined)
      yield* until("all have ended", () => ended.size === 400)
      assert.deepStrictEqual([...new Set(ended.values())], [1], "what was given back has lost no attempt")
    })
  )

  it.live("an idle worker costs a request in seconds, and a quick handler less than three a job", () =>
    Effect.gen(function* () {
      const { a, b, server } = yield* inside
      let ended = 0
      yield* a(EventQueue.subscribe(Task, { process: () => Effect.sync(() => ended++) }))
      yield* Effect.sleep("200 millis")
      const idle = yield* info(server, "stats", "total_commands_processed")
      yield* Effect.sleep("1 second")
      // Heartbeats, and what this test asks.
      assert.isBelow((yield* info(server, "stats", "total_commands_processed")) - idle, 6)
      yield* b(
        Effect.forEach(Array.from({ length: 1_000 }), (_, n) => EventQueue.publish(Task, { n }), {
          concurrency: 100,
          discard: true
        })
      )
      yield* until("all have ended", () => ended === 1_000)
      const calls = String(yield* server.command("info", "commandstats"))
      assert.isBelow(Number(/cmdstat_evalsha:calls=(\d+)/.exec(calls)![1]), 3_000)
    })
  )

  it.live("when Redis is full, publishing fails and workers go on, so that it empties", () =>
    Effect.gen(function* () {
      const { a, server } = yield* inside
      const Remembered = Job.make("task", Schema.Struct({ n: Schema.Number }), {
        keepId: "1 hour",
        maxRetries: 1,
        backoff: Schedule.spaced("1 millis")
      })
      const publish = (n: number) => a(EventQueue.publish(Remembered, { n }, { id: String(n) }))
      yield* Effect.forEach(
        Array.from({ length: 300 }, (_, n) => n),
        publish,
        { concurrency: "unbounded" }
      )
      const ended = new Set<number>()
      yield* a(
        EventQueue.subscribe(Remembered, {
          process: ({ n }, { attempt }) =>
            n === 299 || (n % 7 === 0 && attempt === 1) ? Effect.fail("no") : Effect.sync(() => ended.add(n))
        })
      )
      yield* until("some have ended", () => ended.size > 10)
      yield* server.command("config", "set", "maxmemory", "1mb")
      yield* until("all but one have ended", () => ended.size === 299)
      yield* Effect.repeat(a(EventQueue.depth(Remembered)), {
        until: ({ dead, inFlight }) => dead === 1 && inFlight === 0,
        schedule: Schedule.spaced("20 millis")
      })
      // Also where ids that have ended are remembered.
      const refused = yield* Effect.exit(publish(1_000))
      assert.isTrue(Exit.isFailure(refused))
      assert.include(String(refused), "OOM")
    })
  )

  it.live("a job that was given to a worker when it closed goes to others, and the attempt does not count", () =>
    Effect.gen(function* () {
      const { a, server } = yield* inside
      for (let round = 0; round < 5; round++) {
        // The whole instance: what it does not wait for goes with its connection.
        const scope = yield* Scope.make()
        yield* Layer.buildWithScope(Cohort.layerRedis({ url: server.url }), scope).pipe(
          Effect.flatMap((context) =>
            Effect.provide(EventQueue.subscribe(Task, { process: () => Effect.void }), context)
          ),
          Scope.provide(scope)
        )
        yield* isIdle(server)
        // Answered once it was given away: the worker has yet to hear of it.
        yield* a(EventQueue.publish(Task, { n: round }))
        yield* Scope.close(scope, Exit.void)
        assert.strictEqual((yield* a(EventQueue.depth(Task))).inFlight, 0)
      }
      const attempts: Array<number> = []
      yield* a(EventQueue.publish(Task, { n: 5 }))
      yield* a(EventQueue.subscribe(Task, { process: (_, { attempt }) => Effect.sync(() => attempts.push(attempt)) }))
      yield* Effect.repeat(a(EventQueue.depth(Task)), {
        until: ({ inFlight, ready }) => ready + inFlight === 0,
        schedule: Schedule.spaced("10 millis")
      })
      assert.strictEqual((yield* a(EventQueue.depth(Task))).dead, 0)
      assert.isAbove(attempts.length, 0)
      assert.isTrue(attempts.every((attempt) => attempt === 1))
    })
  )

  it.live(
    "delayed jobs wake idle workers only when they are the first, and no wake looks through what others have",
    () =>
      Effect.gen(function* () {
        const { a, b, server } = yield* inside
        let started = 0
        yield* Effect.forEach(Array.from({ length: 300 }).keys(), (n) => b(EventQueue.publish(Task, { n })), {
          concurrency: "unbounded"
        })
        yield* a(
          EventQueue.subscribe(Task, {
            concurrency: 301,
            process: () =>
              Effect.andThen(
                Effect.sync(() => started++),
                Effect.sleep("30 seconds")
              ),
            shutdownTimeout: 0
          })
        )
        yield* until("all have started", () => started === 300)
        yield* isIdle(server)
        const publish = (delay: number) => b(EventQueue.publish(Task, { n: delay }, { delay }))
        yield* server.command("config", "resetstat")
        yield* publish(600_000)
        yield* isIdle(server)
        assert.strictEqual(yield* callsOf(server, "publish"), 1)
        for (let n = 1; n <= 10; n++) yield* publish(600_000 + n * 1_000)
        assert.strictEqual(yield* callsOf(server, "publish"), 1)
        assert.isBelow(yield* callsOf(server, "hget"), 10)
        // One that comes before them is heard of.
        yield* publish(200)
        yield* until("it has started", () => started === 301)
      })
  )

  it.live("many large jobs at once do not cost an idle worker its subscriptions", () =>
    Effect.gen(function* () {
      const { a, b, server } = yield* inside
      const Large = Job.make("task", Schema.String)
      let ended = 0
      yield* a(EventQueue.subscribe(Large, { concurrency: 8, process: () => Effect.sync(() => ended++) }))
      yield* isIdle(server)
      const subscribed = yield* callsOf(server, "subscribe")
      // Together more than Redis keeps for a subscriber, which is 32 MB.
      const text = "x".repeat(5_000_000)
      yield* Effect.forEach(Array.from({ length: 8 }), () => b(EventQueue.publish(Large, text)), {
        concurrency: "unbounded"
      })
      yield* until("all have ended", () => ended === 8)
      yield* Effect.sleep("200 millis")
      assert.strictEqual(yield* callsOf(server, "subscribe"), subscribed)
    })
  )

  it.live("a take that arrives after it was undone takes nothing, and nothing is given in its name", () =>
    Effect.gen(function* () {
      const { a, server } = yield* inside
      const proxy = yield* TcpProxy.make({ host: "127.0.0.1", port: server.port })
      const cutOff = yield* Layer.build(
        Cohort.layerRedis({ url: `redis://127.0.0.1:${proxy.port}`, timeout: "1 second" })
      )
      let open = false
      const attempts: Array<number> = []
      const process = (_: unknown, { attempt }: EventQueue.JobInfo) => Effect.sync(() => attempts.push(attempt))
      yield* Effect.provide(
        EventQueue.subscribe(Task, { idle: Effect.sync(() => open), idleInterval: "10 millis", process }),
        cutOff
      )
      // The network keeps the first take, until its connection has been given up and it was undone.
      const subscribed = yield* callsOf(server, "subscribe")
      yield* proxy.blackhole
      open = true
      yield* Effect.sleep("100 millis")
      yield* proxy.heal
      yield* Effect.repeat(callsOf(server, "subscribe"), {
        until: (calls) => calls > subscribed,
        schedule: Schedule.spaced("10 millis")
      })
      yield* isIdle(server)
      const [idle] = (yield* server.command("zrange", "cohort:{app:queue:task}:idle", "0", "0")) as [string]
      const [last, , , channel] = idle.split(" ") as [string, string, string, string]
      const first = last.replace(/\.\w+!$/, ".0")
      assert.notStrictEqual(`${first}!`, last)
      const keys = Scripts.keys("cohort:{app:queue:task}")
      yield* server.command("eval", Scripts.take.lua, `${keys.length}`, ...keys, "1", "30000", first, "1", channel, "0")
      for (let n = 0; n < 3; n++) {
        yield* a(EventQueue.publish(Task, { n }))
        yield* until("it has ended", () => attempts.length === n + 1)
      }
      assert.deepStrictEqual(attempts, [1, 1, 1])
    })
  )

  for (const how of ["frozen", "killed"] as const) {
    it.live(`jobs go on whose leases have ended while Redis was ${how}, and no attempt is lost`, () =>
      Effect.gen(function* () {
        const server = yield* RedisServer.make({ appendOnly: true, fsync: "always" })
        const layer = Cohort.layerRedis({ url: server.url, timeout: "1 second" })
        const gate = yield* Latch.make()
        const events: Array<string> = []
        const subscribe = (name: string) =>
          EventQueue.subscribe(Task, {
            concurrency: 3,
            lease: "3 seconds",
            process: (_, { attempt }) =>
              Effect.gen(function* () {
                events.push(`${name} begins attempt ${attempt}`)
                yield* gate.await
                events.push("ended")
              })
          })
        const worker = yield* Layer.build(layer)
        yield* Effect.provide(subscribe("the worker"), worker)
        yield* Effect.forEach([1, 2, 3], (n) => Effect.provide(EventQueue.publish(Task, { n }), worker))
        yield* until("all three run", () => events.length === 3)
        const other = yield* Layer.build(layer)
        yield* Effect.provide(subscribe("the other"), other)
        yield* isIdle(server)
        yield* how === "frozen" ? server.freeze : server.kill
        yield* Effect.sleep("5 seconds")
        yield* how === "frozen" ? server.thaw : server.start
        yield* Effect.sleep("4 seconds")
        yield* gate.open
        const depth = Effect.provide(EventQueue.depth(Task), other)
        yield* Effect.repeat(depth, { until: ({ inFlight }) => inFlight === 0, schedule: Schedule.spaced("50 millis") })
        assert.deepStrictEqual(events, [
          ...Array.from({ length: 3 }, () => "the worker begins attempt 1"),
          ...Array.from({ length: 3 }, () => "ended")
        ])
        assert.deepStrictEqual(yield* depth, { ready: 0, delayed: 0, inFlight: 0, dead: 0 })
      })
    )
  }

  it.live("nothing is left of jobs that have ended", () =>
    Effect.gen(function* () {
      const { a, server } = yield* inside
      let ended = 0
      const Retried = Job.make("task", Schema.Struct({ n: Schema.Number }), { keepId: "50 millis", maxRetries: 1 })
      yield* a(
        EventQueue.subscribe(Retried, {
          process: (_, { attempt }) => (attempt === 1 ? Effect.fail("once") : Effect.sync(() => ended++))
        })
      )
      for (let n = 0; n < 10; n++) yield* a(EventQueue.publish(Retried, { n }))
      yield* until("all have ended", () => ended === 10)
      yield* Effect.sleep("300 millis")
      // A publish forgets the ids whose time is over.
      yield* a(EventQueue.publish(Job.make("task", Schema.Struct({ n: Schema.Number }), { maxRetries: 1 }), { n: 1 }))
      yield* until("that one, too", () => ended === 11)
      yield* Effect.sleep("300 millis")
      const keys = (yield* server.command("keys", "cohort:*queue*")) as ReadonlyArray<string>
      assert.deepStrictEqual(
        keys.filter((key) => !/:(idle|ended)$/.test(key)),
        []
      )
    })
  )
})
