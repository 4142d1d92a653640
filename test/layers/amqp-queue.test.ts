import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { EventQueue, Instance, Job } from "../../src/index.ts"
import { AmqpConnection, AmqpEventQueueStore } from "../../src/layers/amqp/index.ts"
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
