/**
 * One process of a fault test: a worker on the queue `job`, whose handlers do what their jobs say and write down what
 * happens in a Redis of their own. `node queue-worker.ts <url of Redis or RabbitMQ> <url to write to> <lease in ms> <app>`
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as ManagedRuntime from "effect/ManagedRuntime"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { connect } from "amqplib"
import { Redis } from "ioredis"
import { EventQueue, Instance, Job } from "../../src/index.ts"
import { AmqpConnection, AmqpEventQueueStore } from "../../src/layers/amqp/index.ts"
import { RedisConnection, RedisEventQueueStore } from "../../src/layers/redis/index.ts"

/**
 * `wait`: until the key `go:<id>` is there. `die`: kills the process. `fail`: twice. `unacked`: fails, and kills the process
 * when it would acknowledge to RabbitMQ what it has published anew.
 */
const Does = Schema.Literals(["return", "wait", "die", "fail", "unacked"])
export type Does = typeof Does.Type

export const FaultJob = Job.make("job", Schema.Struct({ id: Schema.String, does: Does }), {
  backoff: Schedule.spaced("100 millis"),
  timeout: "1 minute"
})

/** What a handler has written down. */
export interface Event {
  readonly id: string
  readonly attempt: number
  readonly pid: number
  readonly what: "started" | "ended" | "interrupted"
}

/** A lease that is long enough to get through a busy machine, and short to wait for. */
export const leaseMillis = 1_500

const stores = (url: string, timeout: Duration.Input) =>
  url.startsWith("amqp:")
    ? AmqpEventQueueStore.layer.pipe(
        Layer.provide(AmqpConnection.layer({ url, timeout, heartbeat: "1 second", lazy: true }))
      )
    : RedisEventQueueStore.layer.pipe(Layer.provide(RedisConnection.layer({ url, timeout, lazy: true })))

export const layer = (url: string, app: string, timeout: Duration.Input) =>
  EventQueue.layer.pipe(
    Layer.provide(stores(url, timeout)),
    Layer.provide(Instance.layer({ app })),
    Layer.provideMerge(Logger.layer([]))
  )

const killWhenAcknowledging = (url: string) =>
  Effect.promise(async () => {
    const channel = await (await connect(url)).createChannel()
    Object.getPrototypeOf(channel).ack = () => process.kill(process.pid, "SIGKILL")
  })

if (import.meta.main) {
  const [url, notesUrl, lease, app] = process.argv.slice(2)
  const notes = new Redis(notesUrl!)
  notes.on("error", () => undefined)
  // What is written while Redis is killed may get lost on the way.
  const note = (event: Event) =>
    Effect.promise(() => notes.rpush("events", JSON.stringify(event))).pipe(
      Effect.timeout("5 seconds"),
      Effect.sandbox,
      Effect.retry(Schedule.spaced("100 millis")),
      Effect.orDie
    )

  // The retry may come to this very process, before it acknowledges and dies of it.
  let doomed = false

  const work = EventQueue.subscribe(FaultJob, {
    lease: Number(lease),
    concurrency: 8,
    process: ({ does, id }, { attempt }) => {
      const event = { id, attempt, pid: process.pid }
      const released = Effect.repeat(
        Effect.promise(() => notes.exists(`go:${id}`)),
        { schedule: Schedule.spaced("20 millis"), while: (there) => there === 0 }
      )
      return Effect.gen(function* () {
        yield* note({ ...event, what: "started" })
        if (does === "die") process.kill(process.pid, "SIGKILL")
        if (does === "wait") yield* released
        if (doomed) yield* Effect.never
        if (does === "unacked" && attempt === 1) {
          yield* killWhenAcknowledging(url!)
          doomed = true
        }
        if ((does === "unacked" && attempt === 1) || (does === "fail" && attempt < 3)) return yield* Effect.fail("no")
        yield* note({ ...event, what: "ended" })
      }).pipe(Effect.onInterrupt(() => note({ ...event, what: "interrupted" })))
    }
  })
  const runtime = ManagedRuntime.make(layer(url!, app!, url!.startsWith("amqp:") ? "4 seconds" : "1 second"))
  await runtime.runPromise(
    Effect.scoped(
      Effect.gen(function* () {
        yield* Effect.retry(work, Schedule.spaced("100 millis"))
        console.log("ready")
        yield* Effect.never
      })
    )
  )
}
