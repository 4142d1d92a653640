/** Queues on RabbitMQ while workers, publishers and RabbitMQ die, stop and lose their connections. */
import { spawn } from "node:child_process"
import { connect } from "amqplib"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as AmqpQueueNames from "../../src/layers/amqp/AmqpQueueNames.ts"
import * as Validate from "../../src/services/internal/validate.ts"
import * as RabbitServer from "../servers/RabbitServer.ts"
import * as RedisServer from "../servers/RedisServer.ts"
import * as TcpProxy from "../servers/TcpProxy.ts"
import { empty, isAlive, make, script } from "./queue-stage.ts"

let apps = 0
/** After which RabbitMQ sends again what did not arrive on its way from one delay to the next: 3 minutes by default. */
const confirmMillis = 10_000
const env = { RABBITMQ_SERVER_START_ARGS: `-rabbit dead_letter_worker_publisher_confirm_timeout ${confirmMillis}` }
/** Ten tests share two cores. */
const timeout = "10 seconds"

const proxied = (url: string) =>
  Effect.map(TcpProxy.make({ host: "127.0.0.1", port: Number(new URL(url).port || 5672) }), (proxy) => ({
    ...proxy,
    url: `amqp://127.0.0.1:${proxy.port}`
  }))

/** Of every job, in a handler of which it ended. */
const endedOf = (events: ReadonlyArray<{ readonly id: string; readonly what: string }>) =>
  new Set(events.filter(({ what }) => what === "ended").map(({ id }) => id))

/** What RabbitMQ itself hands over, and has no confirm of: from which queue, how often sent, to where, refused by whom. */
const handOvers = `
Name = fun({resource, _, _, Q}) -> Q end,
[{Name(element(2, S)), [{sent, element(8, P), to, lists:map(Name, element(5, P)), refused, lists:map(Name, element(6, P))}
  || P <- maps:values(element(8, S))]}
 || {_, W, _, _} <- supervisor:which_children(rabbit_fifo_dlx_sup), S <- [sys:get_state(W)], map_size(element(8, S)) > 0].`

/** Where what is missing may be. */
const whereabouts = (server: RabbitServer.RabbitServer) =>
  Effect.map(
    Effect.all([
      server.control("list_queues", "name", "messages_ready", "messages_unacknowledged", "messages", "consumers"),
      server.control("eval", handOvers)
    ]),
    (reports) => reports.join("\n")
  )

describe.concurrent("a queue on RabbitMQ", () => {
  const on = (url: string, body: (stage: ReturnType<typeof make> & { url: string; app: string }) => Test) =>
    Effect.flatMap(RedisServer.make({ fsync: "everysec" }), (notes) => {
      const app = `fault-${process.pid}-${apps++}`
      return body({ ...make({ url, notes, app, timeout, within: 60_000 }), url, app })
    })
  type Test = Effect.Effect<void, never, Scope.Scope>
  type Stage = Parameters<Parameters<typeof on>[1]>[0]

  /** On the broker of this file. */
  const test = (name: string, body: (stage: Stage) => Test) =>
    it.live(name, () => Effect.flatMap(RabbitServer.sharedUrl, (url) => on(url, body)), 170_000)

  /** On a broker that it may kill. */
  const testOnOwn = (name: string, body: (server: RabbitServer.RabbitServer, stage: Stage) => Test) =>
    it.live(
      name,
      () => Effect.flatMap(RabbitServer.make({ env }), (server) => on(server.url, (stage) => body(server, stage))),
      240_000
    )

  test("gives the job of a worker that is killed in its handler to another, as attempt 2", (stage) =>
    Effect.gen(function* () {
      const { allow, client, seen, startWorker } = stage
      const queue = yield* client
      const first = yield* startWorker()
      yield* queue.publish("a", "wait")
      yield* seen("a", "started")
      const second = yield* startWorker()
      yield* first.signal("SIGKILL")
      const [, again] = yield* seen("a", "started", 2)
      assert.deepStrictEqual([again!.attempt, again!.pid], [2, second.pid])
      yield* allow("a")
      yield* queue.done()
    }))

  test("runs a job again when its worker is killed between its end and the acknowledgement", (stage) =>
    Effect.gen(function* () {
      const { allow, client, seen, startWorker, url } = stage
      const queue = yield* client
      const proxy = yield* proxied(url)
      const first = yield* startWorker(proxy.url)
      yield* queue.publish("a", "wait")
      yield* seen("a", "started")
      yield* proxy.blackhole
      yield* allow("a")
      yield* seen("a", "ended")
      yield* first.signal("SIGKILL")
      yield* startWorker()
      const runs = yield* seen("a", "ended", 2)
      assert.deepStrictEqual(
        runs.map(({ attempt }) => attempt),
        [1, 2]
      )
      yield* queue.done()
    }))

  test("has what was published by a process that is killed right after, and knows its ids", (stage) =>
    Effect.gen(function* () {
      const { app, client, url } = stage
      const code = `
        const { FaultJob, layer } = await import(${JSON.stringify(script("./queue-worker.ts"))})
        const { Effect, ManagedRuntime } = await import("effect")
        const { EventQueue } = await import(${JSON.stringify(script("../../src/index.ts"))})
        const runtime = ManagedRuntime.make(layer(${JSON.stringify(url)}, ${JSON.stringify(app)}, ${JSON.stringify(timeout)}))
        for (let i = 0; i < 100; i++) {
          const options = i % 2 === 0 ? {} : { id: String(i) }
          await runtime.runPromise(EventQueue.publish(FaultJob, { id: String(i), does: "return" }, options))
        }
        process.kill(process.pid, "SIGKILL")`
      const publisher = spawn(process.execPath, ["--input-type=module", "-e", code], { stdio: "inherit" })
      yield* Effect.promise(() => new Promise((exited) => publisher.once("exit", exited)))
      assert.strictEqual(publisher.signalCode, "SIGKILL")
      const queue = yield* client
      assert.isTrue((yield* queue.publish("99", "return")).duplicate)
      assert.deepStrictEqual(yield* queue.depth, { ...empty, ready: 100 })
    }))

  test("refuses the acknowledgement of a worker that was frozen until its connection was given up", (stage) =>
    Effect.gen(function* () {
      const { allow, client, seen, startWorker } = stage
      const queue = yield* client
      const first = yield* startWorker()
      yield* queue.publish("a", "wait")
      yield* seen("a", "started")
      const second = yield* startWorker()
      yield* first.signal("SIGSTOP")
      const [, again] = yield* seen("a", "started", 2)
      assert.deepStrictEqual([again!.attempt, again!.pid], [2, second.pid])
      yield* first.signal("SIGCONT")
      // It learns that the job is not its own any more.
      const [stopped] = yield* seen("a", "interrupted")
      assert.strictEqual(stopped!.pid, first.pid)
      assert.strictEqual((yield* queue.depth).inFlight, 1, "the job is still the second one's")
      yield* allow("a")
      const ended = yield* seen("a", "ended")
      assert.strictEqual(ended[0]!.pid, second.pid)
      yield* queue.done()
    }))

  for (const [name, cut] of [
    ["is reset", (proxy: TcpProxy.TcpProxy) => proxy.reset],
    [
      "goes silent",
      (proxy: TcpProxy.TcpProxy) => Effect.andThen(proxy.blackhole, Effect.delay(proxy.heal, "5 seconds"))
    ]
  ] as const) {
    test(`runs every job when a worker's connection ${name}`, (stage) =>
      Effect.gen(function* () {
        const { client, events, startWorker, url } = stage
        const queue = yield* client
        const proxy = yield* proxied(url)
        yield* startWorker(proxy.url)
        const ids = Array.from({ length: 100 }, (_, i) => `job-${i}`)
        const publishing = yield* Effect.forkChild(
          Effect.forEach(ids, (id) => Effect.andThen(queue.publish(id, "return"), Effect.sleep("3 millis")))
        )
        for (let i = 0; i < 2; i++) {
          yield* Effect.sleep("300 millis")
          yield* cut(proxy)
        }
        yield* Fiber.join(publishing)
        yield* queue.done()
        assert.strictEqual(endedOf(yield* events).size, ids.length)
      }))
  }

  test("makes a dead letter of a job that kills its process, after its attempts, and nothing else", (stage) =>
    Effect.gen(function* () {
      const { client, events, startWorker, until } = stage
      const queue = yield* client
      for (let i = 0; i < 10; i++) yield* queue.publish(`before-${i}`, "return", 10)
      yield* queue.publish("poison", "die", 2)
      for (let i = 0; i < 10; i++) yield* queue.publish(`after-${i}`, "return", 10)
      // The first worker ends those before it; with the poison, it dies, as do its successors.
      let letters = yield* queue.letters
      while (letters.length === 0) {
        const { pid } = yield* startWorker()
        yield* until(
          "it dies, or buries the poison",
          Effect.gen(function* () {
            letters = yield* queue.letters
            return letters.length > 0 || !isAlive(pid)
          })
        )
      }
      assert.deepStrictEqual(
        letters.map(({ attempts, id, reason }) => ({ id, attempts, reason })),
        [{ id: "poison", attempts: 3, reason: "WorkerLost" }]
      )
      assert.lengthOf(
        (yield* events).filter(({ id, what }) => id === "poison" && what === "started"),
        3
      )
      yield* until(
        "the others are done",
        Effect.map(queue.depth, (depth) => JSON.stringify(depth) === JSON.stringify({ ...empty, dead: 1 }))
      )
    }))

  test("keeps a job whose worker is killed between publishing its retry and acknowledging it", (stage) =>
    Effect.gen(function* () {
      const { client, seen, startWorker, until } = stage
      const queue = yield* client
      const first = yield* startWorker()
      yield* queue.publish("a", "unacked")
      yield* seen("a", "started")
      const second = yield* startWorker()
      yield* until(
        "it dies",
        Effect.sync(() => !isAlive(first.pid))
      )
      const [end] = yield* seen("a", "ended")
      assert.strictEqual(end!.pid, second.pid)
      // The third, where the worker that died had the second one as well.
      assert.oneOf(end!.attempt, [2, 3])
      yield* queue.done()
    }))

  test("lets a short delay pass a long one", (stage) =>
    Effect.gen(function* () {
      const { client, seen, startWorker } = stage
      const queue = yield* client
      yield* startWorker()
      yield* queue.publish("long", "return", 0, { delay: "5 minutes" })
      yield* queue.publish("short", "return", 0, { delay: "200 millis" })
      yield* seen("short", "ended")
      assert.deepStrictEqual(yield* queue.depth, { ...empty, delayed: 1 })
    }))

  test("brings back a job that takes the same way through the delays again and again", (stage) =>
    Effect.gen(function* () {
      const { client, seen, startWorker } = stage
      const queue = yield* client
      yield* startWorker()
      yield* queue.publish("a", "fail", 2, { delay: "100 millis" })
      const [end] = yield* seen("a", "ended")
      assert.strictEqual(end!.attempt, 3)
      yield* queue.done()
    }))

  test("goes on when its queue is deleted: what was there is gone, what comes after is run", (stage) =>
    Effect.gen(function* () {
      const { app, client, seen, startWorker, url } = stage
      const queue = yield* client
      const worker = yield* startWorker()
      yield* queue.publish("before", "return")
      yield* seen("before", "ended")
      yield* Effect.promise(async () => {
        const model = await connect(url)
        await (await model.createChannel()).deleteQueue(AmqpQueueNames.make(Validate.address(app, "queue", "job")).jobs)
        await model.close()
      })
      yield* queue.publish("after", "return")
      const [run] = yield* seen("after", "ended")
      assert.strictEqual(run!.pid, worker.pid)
      yield* queue.done()
    }))

  test("loses none of 2,000 jobs while 8 workers are killed", (stage) =>
    Effect.gen(function* () {
      const { client, events, startWorker } = stage
      const queue = yield* client
      const ids = Array.from({ length: 2_000 }, (_, i) => `job-${i}`)
      const publishing = yield* Effect.forkChild(
        // Half of them claim their ids.
        Effect.forEach(ids, (id, i) => queue.publish(id, "return", 50, i % 2 === 0 ? {} : { id }), {
          concurrency: 8,
          discard: true
        })
      )
      let workers = yield* Effect.all([startWorker(), startWorker()], { concurrency: 2 })
      for (let kills = 0; kills < 8; kills++) {
        yield* Effect.sleep(`${20 + 10 * (kills % 5)} millis`)
        const [next, last] = workers as [(typeof workers)[0], (typeof workers)[0]]
        yield* next.signal("SIGKILL")
        workers = [last, yield* startWorker()]
      }
      yield* Fiber.join(publishing)
      yield* queue.done(90_000)
      assert.strictEqual(endedOf(yield* events).size, ids.length)
    }))

  testOnOwn("loses none of 10,000 jobs that wait, run or are delayed when RabbitMQ is killed", (server, stage) =>
    Effect.gen(function* () {
      const { allow, client, events, seen, startWorker, until } = stage
      const queue = yield* client
      const ids = Array.from({ length: 10_000 }, (_, i) => `job-${i}`)
      const publish = (id: string, i: number) => {
        // A hundred claim their ids; a thousand are delayed over the time that RabbitMQ is away, and beyond.
        const options = i % 100 === 0 ? { id } : i % 10 === 1 ? { delay: i } : {}
        // Again, until RabbitMQ has it.
        const published = Effect.sandbox(queue.publish(id, "return", 50, options))
        return Effect.orDie(Effect.retry(published, Schedule.spaced("200 millis")))
      }
      const some = ids.slice(0, 9_000)
      yield* Effect.forEach(some, publish, { concurrency: 64, discard: true })
      yield* queue.publish("running", "wait", 50)
      yield* startWorker()
      const publishing = yield* Effect.forkChild(
        Effect.forEach(ids.slice(9_000), (id, i) => publish(id, 9_000 + i), { concurrency: 4, discard: true })
      )
      yield* seen("job-2000", "ended")
      yield* server.kill
      // Longer than every timeout there is.
      yield* Effect.sleep("12 seconds")
      yield* server.start
      yield* Fiber.join(publishing)
      yield* allow("running")
      const missing = Effect.map(events, (all) => {
        const ended = endedOf(all)
        return [...ids, "running"].filter((id) => !ended.has(id))
      })
      // What was on its way between two delays when RabbitMQ was killed is sent again after its confirm timeout.
      yield* until(
        "every job ended",
        Effect.map(missing, (ids) => ids.length === 0),
        confirmMillis + 120_000
      ).pipe(
        Effect.catchCause(() =>
          Effect.flatMap(Effect.all([missing, whereabouts(server)]), ([ids, where]) =>
            Effect.die(new Error(`${ids.length} are missing: ${ids.join(" ")}\n${where}`))
          )
        )
      )
      yield* queue.done(120_000)
    })
  )
})
