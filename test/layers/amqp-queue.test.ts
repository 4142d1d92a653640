import { assert, describe, it } from "@effect/vitest"
import { connect as connectRaw } from "amqplib"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import { EventQueue, Instance, Job } from "../../src/index.ts"
import { AmqpConnection, AmqpEventQueueStore } from "../../src/layers/amqp/index.ts"
import * as AmqpQueueNames from "../../src/layers/amqp/AmqpQueueNames.ts"
import * as Validate from "../../src/services/internal/validate.ts"
import { suite } from "../../src/testing/contracts/queue.ts"
import * as RabbitServer from "../servers/RabbitServer.ts"
import { waitUntil } from "../servers/RedisServer.ts"
import * as TcpProxy from "../servers/TcpProxy.ts"
import { amqpPart } from "./amqp.ts"

// Ten tests at a time share the broker, and it two cores: what it does takes as long as it takes.
suite(amqpPart(AmqpEventQueueStore.layer, { lateness: 5_000 }), { propertyRuns: 15 })

describe("a publisher on RabbitMQ that hears late that its job is stored", () => {
  const Numbered = Job.make("task", Schema.Number)
  const app = `late-${process.pid}`
  let apps = 0

  /** Publishes an id through a slow connection; its job has ended, as it should, before the publisher has its answer. */
  const published = (process: Effect.Effect<void, string>) =>
    Effect.gen(function* () {
      const url = new URL(yield* RabbitServer.sharedUrl)
      const proxy = yield* TcpProxy.make({ host: url.hostname, port: Number(url.port || 5672) })
      const instance = { app: `${app}-${apps++}` }
      const connect = (port: string | number) => {
        const there = new URL(url)
        there.port = String(port)
        return Effect.map(
          Layer.build(
            EventQueue.layer.pipe(
              Layer.provide(AmqpEventQueueStore.layer),
              Layer.provide(AmqpConnection.layer({ url: there.href, timeout: "20 seconds" })),
              Layer.provide(Instance.layer(instance))
            )
          ),
          Context.get(EventQueue.EventQueue)
        )
      }
      const publisher = yield* connect(proxy.port)
      const worker = yield* connect(url.port)
      const ended: Array<number> = []
      yield* worker.subscribe(Numbered, {
        process: (n) =>
          Effect.ensuring(
            process,
            Effect.sync(() => void ended.push(n))
          )
      })
      // Everything is there that the first job would have to wait for.
      yield* publisher.publish(Numbered, 0)
      const until = (what: string, condition: () => Promise<boolean>) =>
        Effect.promise(() => waitUntil(condition, () => `never: ${what}`, 30_000))
      const over = async () => {
        const { delayed, inFlight, ready } = await Effect.runPromise(worker.depth(Numbered))
        return ready + delayed + inFlight === 0
      }
      yield* until("the first job ends", async () => ended.length === 1 && (await over()))
      yield* proxy.latency(300)
      assert.isFalse((yield* publisher.publish(Numbered, 1, { id: "x" })).duplicate)
      yield* proxy.latency(0)
      yield* until("it ends", async () => ended.includes(1) && (await over()))
      return worker
    })

  it.live("leaves the id free once the job has ended", () =>
    Effect.gen(function* () {
      const queue = yield* published(Effect.void)
      assert.isFalse((yield* queue.publish(Numbered, 2, { id: "x" })).duplicate)
    })
  )

  it.live("leaves the dead letter to be redriven", () =>
    Effect.gen(function* () {
      const queue = yield* published(Effect.fail("no"))
      const ids = (yield* queue.deadLetters(Numbered)).map(({ id }) => id)
      assert.include(ids, "x")
      assert.strictEqual(yield* queue.redrive(Numbered, ["x"]), 1)
    })
  )
})

describe("a queue on RabbitMQ", () => {
  const Numbered = Job.make("task", Schema.Number)
  let apps = 0
  const freshApp = () => `queue-${process.pid}-${apps++}`
  const namesOf = (app: string) => AmqpQueueNames.make(Validate.address(app, "queue", "task"))

  const connect = (url: string, app: string, timeout: `${number} seconds` = "20 seconds") =>
    Effect.map(
      Layer.build(
        EventQueue.layer.pipe(
          Layer.provide(AmqpEventQueueStore.layer),
          Layer.provide(AmqpConnection.layer({ url, timeout })),
          Layer.provide(Instance.layer({ app }))
        )
      ),
      Context.get(EventQueue.EventQueue)
    )

  const until = (what: string, condition: () => boolean | Promise<boolean>) =>
    Effect.promise(() =>
      waitUntil(
        async () => condition(),
        () => `never: ${what}`,
        30_000
      )
    )

  it.live(
    "acknowledges while it takes no messages, also when a worker is asked what it has as that begins",
    () =>
      Effect.gen(function* () {
        const server = yield* RabbitServer.make()
        const proxy = yield* TcpProxy.make({ host: "127.0.0.1", port: server.port })
        const app = freshApp()
        const asker = yield* connect(server.url, app)
        const worker = yield* connect(`amqp://127.0.0.1:${proxy.port}`, app)
        let mayEnd = false
        let ended = 0
        yield* worker.subscribe(Numbered, {
          process: () =>
            Effect.andThen(
              until("it may end", () => mayEnd),
              Effect.sync(() => void ended++)
            )
        })
        for (let n = 0; n < 20; n++) yield* worker.publish(Numbered, n)
        assert.strictEqual((yield* asker.depth(Numbered)).inFlight, 1)
        // The answer is on its way for longer than it takes to set the alarm.
        yield* proxy.latency(3_000)
        yield* Effect.forkChild(Effect.exit(asker.depth(Numbered)))
        yield* server.control("set_vm_memory_high_watermark", "0.0000001")
        yield* Effect.sleep("6 seconds")
        yield* proxy.latency(0)
        mayEnd = true
        yield* until("all end", () => ended === 20)
        // So that closing need not wait.
        yield* server.control("set_vm_memory_high_watermark", "0.6")
      }),
    120_000
  )

  it.live("whose streams are deleted, or lose their end, goes on to tell of what is there", () =>
    Effect.gen(function* () {
      const url = yield* RabbitServer.sharedUrl
      const app = freshApp()
      const queue = yield* connect(url, app, "4 seconds")
      yield* queue.subscribe(Numbered, { process: () => Effect.fail("no") })
      const deadOnes = async () => {
        const letters = await Effect.runPromise(Effect.orElseSucceed(queue.deadLetters(Numbered), () => []))
        return letters.map(({ payload }) => Option.getOrThrow(payload)).join()
      }
      for (let n = 0; n < 10; n++) yield* queue.publish(Numbered, n)
      yield* until("they die", async () => (await deadOnes()) === "0,1,2,3,4,5,6,7,8,9")
      const { dead, delays } = namesOf(app)
      yield* Effect.promise(async () => {
        const model = await connectRaw(url)
        const channel = await model.createChannel()
        for (const stream of [dead, delays]) await channel.deleteQueue(stream)
        await model.close()
      })
      yield* queue.publish(Numbered, 10)
      yield* until("another dies", async () => (await deadOnes()) === "10")
      assert.deepStrictEqual(yield* queue.depth(Numbered), { ready: 0, delayed: 0, inFlight: 0, dead: 1 })
    })
  )

  it.live("asked for its depth writes nothing to where dead letters are, which nothing ever leaves", () =>
    Effect.gen(function* () {
      const url = yield* RabbitServer.sharedUrl
      const app = freshApp()
      const queue = yield* connect(url, app)
      const worker = yield* connect(url, app)
      yield* worker.subscribe(Numbered, { process: (n) => (n < 2 ? Effect.fail("no") : Effect.void) })
      const countRecords = Effect.promise(async () => {
        const model = await connectRaw(url)
        const channel = await model.createChannel()
        await channel.prefetch(100)
        let count = 0
        let last = Date.now()
        await channel.consume(
          namesOf(app).dead,
          (message) => {
            count++
            last = Date.now()
            channel.ack(message!)
          },
          { arguments: { "x-stream-offset": "first" } }
        )
        await waitUntil(
          async () => Date.now() - last > 500,
          () => "never quiet",
          10_000
        )
        await model.close()
        return count
      })
      for (const dead of [1, 2]) {
        yield* worker.publish(Numbered, dead - 1)
        yield* until("it dies", async () => (await Effect.runPromise(queue.depth(Numbered))).dead === dead)
        const before = yield* countRecords
        for (let i = 0; i < 5; i++) assert.strictEqual((yield* queue.depth(Numbered)).dead, dead)
        assert.strictEqual(yield* countRecords, before)
      }
    })
  )

  it.live(
    "refuses what is larger than RabbitMQ takes, and buries what is that together with its error; others go on",
    () =>
      Effect.gen(function* () {
        const Texts = Job.make("task", Schema.Array(Schema.String))
        const server = yield* RabbitServer.make({ config: "max_message_size = 100000" })
        const queue = yield* connect(server.url, freshApp())
        const ended: Array<number> = []
        yield* queue.subscribe(Texts, {
          concurrency: 2,
          process: ({ length }) =>
            length > 10_000
              ? Effect.fail("no")
              : Effect.andThen(
                  Effect.sleep("5 millis"),
                  Effect.sync(() => void ended.push(length))
                )
        })
        const texts = (size: number) => Array.from({ length: size }, () => "ab")
        yield* queue.publish(Texts, [])
        for (const id of [undefined, "x"]) {
          const { reason } = yield* Effect.flip(queue.publish(Texts, texts(30_000), { id }))
          assert.strictEqual(reason._tag, "InvalidInput")
          assert.match(reason.message, /^payload: .* 100000 bytes/)
        }
        // Its quotes take two characters each in a letter.
        yield* queue.publish(Texts, texts(19_000), { id: "x", delay: "50 millis" })
        yield* Effect.forEach(texts(200), (_, i) => queue.publish(Texts, texts(i)), { discard: true })
        yield* until("the others end", () => ended.length === 201)
        let letters: ReadonlyArray<EventQueue.DeadLetter<ReadonlyArray<string>>> = []
        yield* until("it is a dead letter", async () => {
          letters = await Effect.runPromise(queue.deadLetters(Texts))
          return letters.length > 0
        })
        const [{ id, payload, reason }] = letters as [(typeof letters)[0]]
        assert.deepStrictEqual([id, reason, Option.getOrThrow(payload).length], ["x", "Failed", 19_000])
        assert.strictEqual(yield* queue.redrive(Texts, "all"), 1)
      }),
    120_000
  )

  it.live(
    "keeps a dead letter that RabbitMQ made when it dies again while others are redriven",
    () =>
      Effect.gen(function* () {
        const Texts = Job.make("task", Schema.Array(Schema.String))
        const server = yield* RabbitServer.make({ config: "max_message_size = 100000" })
        const queue = yield* connect(server.url, freshApp())
        yield* queue.subscribe(Texts, { concurrency: 100, process: () => Effect.fail("no") })
        const texts = (size: number) => Array.from({ length: size }, () => "ab")
        const deadAre = (count: number) =>
          until(`${count} dead letters`, async () => {
            const depth = await Effect.runPromise(Effect.orElseSucceed(queue.depth(Texts), () => undefined))
            return depth?.dead === count && depth.ready + depth.inFlight === 0
          })
        // So that the limit is known, and no channel ends while "x" is published.
        yield* Effect.flip(queue.publish(Texts, texts(30_000)))
        yield* queue.publish(Texts, texts(19_000), { id: "x" })
        yield* deadAre(1)
        yield* Effect.forEach(texts(600), () => queue.publish(Texts, []), { concurrency: 100, discard: true })
        yield* deadAre(601)
        assert.strictEqual(yield* queue.redrive(Texts, "all"), 601)
        yield* deadAre(601)
        assert.isTrue(Option.isSome(yield* queue.deadLetter(Texts, "x")))
      }),
    120_000
  )

  it.live(
    "tells of a job that a policy of RabbitMQ has ended, which can be redriven",
    () =>
      Effect.gen(function* () {
        const server = yield* RabbitServer.make()
        yield* server.control("set_policy", "ttl", "^cohort[.]jobs", '{"message-ttl":100}')
        const queue = yield* connect(server.url, freshApp())
        yield* queue.publish(Numbered, 1, { id: "x" })
        let errors: ReadonlyArray<string> = []
        yield* until("it is a dead letter", async () => {
          errors = (await Effect.runPromise(queue.deadLetters(Numbered))).map(({ lastError }) => lastError)
          return errors.length > 0
        })
        assert.deepStrictEqual(errors, ["it waited longer than a policy of RabbitMQ lets it (message-ttl)"])
        yield* server.control("clear_policy", "ttl")
        assert.strictEqual(yield* queue.redrive(Numbered, "all"), 1)
        assert.strictEqual((yield* queue.depth(Numbered)).ready, 1)
      }),
    120_000
  )

  it.live(
    "whose redriving is interrupted does not redrive again what was redriven",
    () =>
      Effect.gen(function* () {
        const app = freshApp()
        const url = yield* RabbitServer.sharedUrl
        const queue = yield* connect(url, app)
        let isFailing = true
        const runs = new Map<number, number>()
        const process = (n: number) =>
          Effect.suspend(() => {
            if (isFailing) return Effect.fail("no")
            runs.set(n, (runs.get(n) ?? 0) + 1)
            return Effect.void
          })
        yield* queue.subscribe(Numbered, { concurrency: 100, process })
        const numbers = Array.from({ length: 10_000 }, (_, n) => n)
        yield* Effect.forEach(numbers, (n) => queue.publish(Numbered, n), { concurrency: 100, discard: true })
        const dead = () =>
          Effect.runPromise(
            Effect.orElseSucceed(
              Effect.map(queue.depth(Numbered), ({ dead }) => dead),
              () => -1
            )
          )
        yield* until("they die", async () => (await dead()) === numbers.length)
        isFailing = false
        const redriving = yield* Effect.forkChild(queue.redrive(Numbered, "all"))
        yield* until("some of them ran", () => runs.size > 2_000)
        yield* Fiber.interrupt(redriving)
        assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(redriving)), "it was under way")
        yield* queue.redrive(Numbered, "all")
        yield* until("all ran", async () => {
          const { inFlight, ready } = await Effect.runPromise(queue.depth(Numbered))
          return ready + inFlight === 0 && runs.size === numbers.length
        })
        // It has 500 in hand at a time.
        assert.isAtMost([...runs.values()].filter((count) => count > 1).length, 500)
      }),
    120_000
  )

  it.live(
    "redrives and discards more dead letters than one message can name",
    () =>
      Effect.gen(function* () {
        const server = yield* RabbitServer.make({ config: "max_message_size = 80000" })
        const queue = yield* connect(server.url, freshApp())
        let isFailing = true
        yield* queue.subscribe(Numbered, {
          concurrency: 100,
          process: () => Effect.suspend(() => (isFailing ? Effect.fail("no") : Effect.void))
        })
        const count = 2_500
        const numbers = Array.from({ length: count }, (_, n) => n)
        yield* Effect.forEach(numbers, (n) => queue.publish(Numbered, n), { concurrency: 100, discard: true })
        const deadAre = (dead: number) =>
          until(`${dead} dead letters`, async () => {
            const depth = await Effect.runPromise(Effect.orElseSucceed(queue.depth(Numbered), () => undefined))
            return depth?.dead === dead && depth.ready + depth.inFlight === 0
          })
        yield* deadAre(count)
        assert.strictEqual(yield* queue.redrive(Numbered, "all"), count)
        yield* deadAre(count)
        assert.strictEqual(yield* queue.discard(Numbered, "all"), count)
        yield* deadAre(0)
        isFailing = false
      }),
    120_000
  )
})
