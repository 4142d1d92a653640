/**
 * What a later release sends, written by hand at the port, as it would be on the wire; so is the later release's worker.
 * Releases that there have been are run, in releases.test.ts.
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import {
  EventQueue,
  EventQueueStore,
  Instance,
  Job,
  Metrics,
  Payload,
  PubSub,
  PubSubTransport,
  SyncMessage,
  Topic
} from "../../src/index.ts"
import * as Amqp from "../../src/layers/amqp/index.ts"
import { MemoryEventQueueStore, MemoryHub, MemoryPubSubTransport } from "../../src/layers/memory/index.ts"
import * as Redis from "../../src/layers/redis/index.ts"
import * as RabbitServer from "../servers/RabbitServer.ts"
import * as RedisServer from "../servers/RedisServer.ts"

const Work = Job.make("work", Schema.Struct({ n: Schema.Number }))
const News = Topic.make("news", Schema.Struct({ n: Schema.Number }))
const memory = Layer.mergeAll(MemoryEventQueueStore.layer, MemoryPubSubTransport.layer).pipe(
  Layer.provide(MemoryHub.layer)
)
const redis = Layer.unwrap(
  Effect.map(RedisServer.sharedUrl, (url) => Layer.provide(Redis.layerStores, Redis.RedisConnection.layer({ url })))
)
const rabbit = Layer.unwrap(
  Effect.map(RabbitServer.sharedUrl, (url) =>
    Layer.provide(Amqp.layerStores, Amqp.AmqpConnection.layer({ url, timeout: "30 seconds" }))
  )
)
const app = `upgrade-${process.pid}`
const until = (what: string, condition: () => boolean) =>
  Effect.promise(() => RedisServer.waitUntil(condition, () => `never: ${what}`, 30_000))

type Services =
  | EventQueue.EventQueue
  | EventQueueStore.EventQueueStore
  | PubSub.PubSub
  | PubSubTransport.PubSubTransport
  | SyncMessage.SyncMessage

const suite = (name: string, stores: Layer.Layer<any, any, any>) =>
  describe(`what a later release sends, on ${name}`, () => {
    const layer = SyncMessage.layer.pipe(
      Layer.provideMerge(Layer.merge(EventQueue.layer, PubSub.layer)),
      Layer.provideMerge(stores),
      Layer.provideMerge(Instance.layer({ app, id: "this" }))
    ) as Layer.Layer<Services>
    const test = (name: string, body: Effect.Effect<void, any, Services | Scope.Scope>) =>
      it.live(name, () => body.pipe(Effect.scoped, Effect.provide(layer), Effect.orDie), 60_000)

    const publish = (kind: string, channel: string, json: string) =>
      PubSubTransport.PubSubTransport.use((transport) =>
        transport.publish(`${app}:${kind}:${channel}`, {
          from: "other",
          toSelf: false,
          payload: Payload.Payload.fromJson(json)
        })
      )
    const enqueue = (channel: string, json: string, maxRetries = 0) =>
      EventQueueStore.EventQueueStore.use((store) =>
        store.publish(`${app}:queue:${channel}`, {
          id: json,
          isGiven: true,
          payload: Payload.Payload.fromJson(json),
          delay: 0,
          timeout: 15_000,
          maxRetries,
          keepId: 0
        })
      )
    /** The later release's worker takes one, and ends it. */
    const takenByLater = (channel: string) =>
      Effect.gen(function* () {
        const store = yield* EventQueueStore.EventQueueStore
        const later = yield* store.worker(`${app}:queue:${channel}`, { lease: 30_000, concurrency: 1 })
        let taken: ReadonlyArray<EventQueueStore.Delivery> = []
        while (taken.length === 0) taken = yield* Effect.flatMap(later.ready, () => later.take(1))
        const [delivery] = taken
        assert.deepStrictEqual(yield* later.settle([{ delivery: delivery!, outcome: { _tag: "ack" } }]), [true])
        return delivery!
      })
    const undecodable = Effect.map(Metric.value(Metrics.messagesUndecodable), ({ count }) => Number(count))

    test(
      "is handled where it can be read; other jobs are left to it, other broadcasts dropped and counted",
      Effect.gen(function* () {
        const wires = ['{"n":1}', '{"~cohort":1,"colour":"red","data":{"n":2}}', '{"~cohort":2,"body":{"n":3}}']
        const [jobs, news]: [Array<number>, Array<number>] = [[], []]
        const anything: Array<unknown> = []
        const before = yield* undecodable
        yield* PubSub.subscribe(News, ({ n }) => Effect.sync(() => news.push(n)))
        // A Schema that would take whatever it is given.
        yield* PubSub.subscribe(Topic.make("news", Schema.Unknown), (message) =>
          Effect.sync(() => anything.push(message))
        )
        yield* Effect.scoped(
          Effect.gen(function* () {
            yield* EventQueue.subscribe(Work, { process: ({ n }) => Effect.sync(() => jobs.push(n)) })
            for (const wire of [...wires].reverse()) {
              yield* publish("topic", "news", wire)
              yield* enqueue("work", wire)
            }
            yield* until("what this release can read is handled", () => jobs.length === 2 && news.length === 2)
          })
        )
        assert.deepStrictEqual([...jobs].sort(), [1, 2])
        assert.deepStrictEqual(news, [2, 1])
        assert.deepStrictEqual(anything, [{ n: 2 }, { n: 1 }])
        assert.strictEqual((yield* undecodable) - before, 2)
        assert.strictEqual((yield* EventQueue.depth(Work)).dead, 0)
        const delivery = yield* takenByLater("work")
        assert.strictEqual(delivery.attempt, 1, "giving it back did not count")
        assert.strictEqual(delivery.payload.json, wires[2])
      })
    )

    test(
      "keeps what this release does not know of it through retries, a dead letter, and redrive",
      Effect.gen(function* () {
        const Kept = Job.make("kept", Schema.Struct({ n: Schema.Number }), { backoff: Schedule.spaced("50 millis") })
        const wires = ['{"n":1,"shade":7}', '{"~cohort":1,"colour":"red","data":{"n":2,"shade":7}}']
        yield* Effect.scoped(
          Effect.gen(function* () {
            const attempts: Array<number> = []
            yield* EventQueue.subscribe(Kept, {
              process: (_, { attempt }) =>
                Effect.andThen(
                  Effect.sync(() => attempts.push(attempt)),
                  Effect.fail("no")
                )
            })
            for (const wire of wires) yield* enqueue("kept", wire, 1)
            yield* until("both have had their attempts", () => attempts.length === 4)
          })
        )
        const letters = yield* EventQueue.deadLetters(Kept)
        assert.deepStrictEqual(letters.map(({ attempts, id }) => [id, attempts]).sort(), [
          [wires[0], 2],
          [wires[1], 2]
        ])
        assert.strictEqual(yield* EventQueue.redrive(Kept, "all"), 2)
        const again = [yield* takenByLater("kept"), yield* takenByLater("kept")]
        assert.deepStrictEqual(again.map(({ attempt, payload }) => [payload.json, attempt]).sort(), [
          [wires[0], 1],
          [wires[1], 1]
        ])
      })
    )

    test(
      "is a hole where it is a sync message that cannot be read: the next one causes a resync",
      Effect.gen(function* () {
        const Changes = SyncMessage.make("plugin", Schema.Struct({ n: Schema.Number }), { debounce: 0 })
        const heard: Array<number | string> = []
        yield* SyncMessage.subscribe(Changes, {
          handle: ({ n }) => Effect.sync(() => heard.push(n)),
          resync: Effect.sync(() => heard.push("resync"))
        })
        const message = (number: number) => `{"from":"other","number":${number},"data":{"n":${number}},"colour":"red"}`
        const before = yield* undecodable
        yield* publish("sync", "plugin", message(1))
        yield* until("the first", () => heard.includes(1))
        yield* publish("sync", "plugin", message(2))
        yield* publish("sync", "plugin", `{"~cohort":2,"body":${message(3)}}`)
        yield* publish("sync", "plugin", message(4))
        yield* until("the last", () => heard.includes(4))
        assert.deepStrictEqual(heard, ["resync", 1, 2, "resync", 4])
        assert.strictEqual((yield* undecodable) - before, 1)
      })
    )
  })

suite("memory", memory)
suite("redis", redis)
suite("rabbitmq", rabbit)
