/** What a worker on RabbitMQ does at moments that no server can be made to hit: on a session of this file. */
import { assert, it } from "@effect/vitest"
import type { ConsumeMessage } from "amqplib"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as AmqpQueueNames from "../../src/layers/amqp/AmqpQueueNames.ts"
import { writeJob } from "../../src/layers/amqp/AmqpQueueRecord.ts"
import { AmqpQueueWorker } from "../../src/layers/amqp/AmqpQueueWorker.ts"
import type { Session } from "../../src/layers/amqp/AmqpSession.ts"
import * as Timers from "../../src/services/internal/Timers.ts"

it.effect("pausing waits for what goes back by itself: a channel that ended before would leave it there twice", () =>
  Effect.gen(function* () {
    const acknowledged: Array<ConsumeMessage> = []
    let deliver: (message: ConsumeMessage) => void = () => {}
    const session = {
      over: false,
      channel: {
        assertQueue: async () => ({ queue: "", messageCount: 0, consumerCount: 0 }),
        prefetch: async () => ({})
      },
      consume: async (_: string, onDelivery: typeof deliver) => {
        deliver = onDelivery
        return async () => {}
      },
      ack: (message: ConsumeMessage) => acknowledged.push(message) > 0
    } as unknown as Session
    const published = yield* Deferred.make<void>()
    const worker = new AmqpQueueWorker({
      names: AmqpQueueNames.make("task"),
      name: "worker",
      concurrency: 1,
      forward: () => Deferred.await(published),
      announce: () => Effect.void,
      isOver: () => false,
      pausing: Effect.void,
      // It was given to a consumer that was cancelled, so its attempt does not count.
      pausedUntil: () => Number.POSITIVE_INFINITY,
      now: () => 0,
      timers: yield* Timers.make,
      runFork: Effect.runForkWith(yield* Effect.context<never>())
    })
    worker.attach({ current: () => session, ready: Effect.succeed(session) })
    assert.deepStrictEqual(yield* worker.take(1), [])
    const meta = { id: "x", publishedAt: 0, timeout: 1_000, maxRetries: 0, keepId: 0, attempts: 0 }
    deliver({
      content: writeJob({ meta, payload: "1" }),
      fields: { consumerTag: "jobs-0" },
      properties: { headers: { "x-delivery-count": 1 } }
    } as unknown as ConsumeMessage)
    const pausing = yield* Effect.forkChild(worker.pause)
    for (let turn = 0; turn < 100; turn++) yield* Effect.promise(() => new Promise((done) => setImmediate(done)))
    assert.isUndefined(pausing.pollUnsafe(), "it has not been published anew")
    yield* Deferred.succeed(published, undefined)
    yield* Fiber.join(pausing)
    assert.lengthOf(acknowledged, 1)
  })
)
