/** What a worker on RabbitMQ does at moments that no server can be made to hit: on a session of this file. */
import { assert, it } from "@effect/vitest"
import type { ConsumeMessage } from "amqplib"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as AmqpQueueDepth from "../../src/layers/amqp/AmqpQueueDepth.ts"
import * as AmqpQueueNames from "../../src/layers/amqp/AmqpQueueNames.ts"
import { writeJob } from "../../src/layers/amqp/AmqpQueueRecord.ts"
import { AmqpQueueWorker, type Forward } from "../../src/layers/amqp/AmqpQueueWorker.ts"
import type { Session } from "../../src/layers/amqp/AmqpSession.ts"
import * as Timers from "../../src/services/internal/Timers.ts"
import { Unavailable } from "../../src/services/Reason.ts"

const meta = { id: "x", publishedAt: 0, timeout: 1_000, maxRetries: 0, keepId: 0, attempts: 0 }

/** A worker that consumes, with what delivers to it, and what it has acknowledged. */
const working = (options: {
  readonly forward?: Forward
  readonly pausedUntil?: () => number
  readonly now?: () => number
  readonly concurrency?: number
}) =>
  Effect.gen(function* () {
    const acknowledged: Array<ConsumeMessage> = []
    let onDelivery: (message: ConsumeMessage) => void = () => {}
    const session = {
      over: false,
      channel: {
        assertQueue: async () => ({ queue: "", messageCount: 0, consumerCount: 0 }),
        prefetch: async () => ({})
      },
      consume: async (_: string, deliver: typeof onDelivery) => {
        onDelivery = deliver
        return async () => {}
      },
      ack: (message: ConsumeMessage) => acknowledged.push(message) > 0
    } as unknown as Session
    const worker = new AmqpQueueWorker({
      names: AmqpQueueNames.make("task"),
      name: "worker",
      concurrency: 1,
      forward: () => Effect.succeed(true),
      announce: () => Effect.void,
      reply: () => {},
      isOver: () => false,
      pausing: Effect.void,
      pausedUntil: () => 0,
      now: () => 0,
      timers: yield* Timers.make,
      runFork: Effect.runForkWith(yield* Effect.context<never>()),
      ...options
    })
    worker.attach({ current: () => session, ready: Effect.succeed(session) })
    assert.deepStrictEqual(yield* worker.take(1), [])
    const deliver = (more: Partial<Parameters<typeof writeJob>[0]["meta"]>, headers: object = {}) =>
      onDelivery({
        content: writeJob({ meta: { ...meta, ...more }, payload: "1" }),
        fields: { consumerTag: "jobs-0" },
        properties: { headers }
      } as unknown as ConsumeMessage)
    return { acknowledged, deliver, worker }
  })

const turns = Effect.promise(async () => {
  for (let turn = 0; turn < 100; turn++) await new Promise((done) => setImmediate(done))
})

it.effect("pausing waits for what goes back by itself: a channel that ended before would leave it there twice", () =>
  Effect.gen(function* () {
    const published = yield* Deferred.make<boolean>()
    const { acknowledged, deliver, worker } = yield* working({
      forward: () => Deferred.await(published),
      // It was given to a consumer that was cancelled, so its attempt does not count.
      pausedUntil: () => Number.POSITIVE_INFINITY
    })
    deliver({}, { "x-delivery-count": 1 })
    const pausing = yield* Effect.forkChild(worker.pause)
    yield* turns
    assert.isUndefined(pausing.pollUnsafe(), "it has not been published anew")
    yield* Deferred.succeed(published, true)
    yield* Fiber.join(pausing)
    assert.lengthOf(acknowledged, 1)
  })
)

it.effect("what is refused does not make others of its batch go back twice", () =>
  Effect.gen(function* () {
    const published: Array<string> = []
    const confirmed = yield* Deferred.make<boolean>()
    const { acknowledged, deliver, worker } = yield* working({
      concurrency: 2,
      forward: (_, { meta: { id } }) => {
        published.push(id)
        if (id === "y") return Deferred.await(confirmed)
        return Effect.fail(new Unavailable({ backend: "rabbitmq", detail: "it refused a message" }))
      }
    })
    deliver({ id: "x" })
    deliver({ id: "y" })
    const settlements = (yield* worker.take(2)).map((delivery) => ({
      delivery,
      outcome: { _tag: "retry", delay: 1, error: "no" } as const
    }))
    const first = yield* Effect.forkChild(Effect.flip(worker.settle(settlements)))
    yield* turns
    yield* Deferred.succeed(confirmed, true)
    yield* Fiber.join(first)
    yield* Effect.flip(worker.settle(settlements))
    assert.deepStrictEqual(published, ["x", "y", "x"])
    assert.lengthOf(acknowledged, 1)
  })
)

it.effect("the ends of delays are not remembered for long, whether somebody asks for them or not", () =>
  Effect.gen(function* () {
    let now = 0
    const { deliver, worker } = yield* working({ concurrency: 1, now: () => now })
    for (let i = 0; i < 1_000; i++) {
      now += 1_000
      deliver({ nonce: String(i) })
    }
    const { ended } = worker as unknown as { readonly ended: ReadonlyMap<string, number> }
    assert.deepStrictEqual([...ended.keys()], worker.endedDelays())
    assert.isAtMost(ended.size, 10)
    assert.isTrue(ended.has("999"))
  })
)

it("delays that are over are not remembered by who never asks for the depth again", () => {
  const told = { due: new Map<string, number>(), workers: new Set<string>(), news: 0 }
  for (let now = 0; now < 20_000; now++) {
    AmqpQueueDepth.readRecord(told, AmqpQueueDepth.dueRecord(now + 100, String(now)), now)
  }
  assert.isTrue(told.due.has("19999"))
  assert.isAtMost(told.due.size, 7_000)
})
