import type { Contender, Workload } from "../bench.ts"
import { idle, payload, signal } from "../queue.ts"

const many = 64

const cohort = async () => {
  const Deferred = await import("effect/Deferred")
  const Effect = await import("effect/Effect")
  const Schema = await import("effect/Schema")
  const { inFlight, makeRuntime, timedOn } = await import("./cohort.ts")
  const { EventQueue, Job } = await import("../../src/index.ts")
  const runtime = makeRuntime({ app: `bench-${process.pid}` })
  const Import = Job.make(
    "import",
    Schema.Struct({
      id: Schema.String,
      name: Schema.String,
      email: Schema.String,
      rows: Schema.Number,
      createdAt: Schema.String
    })
  )
  const publish = (n: number) => inFlight(n, many, () => EventQueue.publish(Import, payload))
  return { Deferred, Effect, EventQueue, Import, publish, runtime, time: timedOn(runtime) }
}

/** Empties the queue of ours. */
const purge = async () => {
  const { connect } = await import("./raw.ts")
  const { address } = await import("../../src/services/internal/validate.ts")
  const { make } = await import("../../src/layers/amqp/AmqpQueueNames.ts")
  const channel = await (await connect()).createChannel()
  const { jobs } = make(address(`bench-${process.pid}`, "queue", "import"))
  return () => channel.purgeQueue(jobs)
}

const raw = async () => {
  const { timedInFlight } = await import("../bench.ts")
  const { connect, declareQueue, properties } = await import("./raw.ts")
  const model = await connect()
  const channel = await model.createConfirmChannel()
  const name = await declareQueue(channel)
  const publish = () =>
    new Promise<void>((resolve, reject) => {
      channel.publish("", name, Buffer.from(JSON.stringify(payload)), properties, (error) =>
        error === null ? resolve() : reject(error)
      )
    })
  return { channel, name, publish, publishAll: (n: number) => timedInFlight(n, many, publish) }
}

// --- publish ---

export const queuePublish: Workload = {
  name: `queue publish, ${many} in flight`,
  batch: 6_400,
  contenders: [
    {
      name: "cohort",
      setup: "publish of a job with a Schema.Struct, 64 fibers in a loop; every one is confirmed",
      make: async () => {
        const { publish, time } = await cohort()
        const empty = await purge()
        return async (n) => {
          const took = await time(publish(n))
          await empty()
          return took
        }
      }
    },
    {
      name: "amqplib (raw)",
      setup: "a confirm channel, persistent and mandatory, to a quorum queue; 64 async functions in a loop",
      goal: 0.95,
      make: async () => {
        const { channel, name, publishAll } = await raw()
        return async (n) => {
          const took = await publishAll(n)
          await channel.purgeQueue(name)
          return took
        }
      }
    },
    {
      name: "rascal",
      setup: "publications with confirms to a quorum queue, at its defaults; 64 async functions in a loop",
      make: async () => {
        const { default: rascal } = await import("rascal")
        const { timedInFlight } = await import("../bench.ts")
        const { quorum } = await import("./raw.ts")
        const name = `rascal-${process.pid}`
        const broker = await rascal.BrokerAsPromised.create({
          vhosts: {
            "/": {
              connection: { url: process.env.AMQP_URL! },
              queues: { [name]: { options: quorum } },
              publications: { jobs: { queue: name, confirm: true, options: { persistent: true, mandatory: true } } }
            }
          }
        })
        broker.on("error", () => {})
        const publish = async () => {
          const publication = await broker.publish("jobs", payload)
          await new Promise((resolve, reject) => publication.on("success", resolve).on("error", reject))
        }
        return async (n) => {
          const took = await timedInFlight(n, many, publish)
          await broker.purge()
          return took
        }
      }
    }
  ]
}

// --- drain ---

const drained = (concurrency: number): Contender => ({
  name: "cohort",
  setup: `one subscription with concurrency ${concurrency}, timeout and retries at their defaults; from the first job's start to the last one's`,
  make: async () => {
    const { Deferred, Effect, EventQueue, Import, publish, runtime } = await cohort()
    return async (n) => {
      await runtime.runPromise(publish(n))
      let done = 0
      let first = 0n
      return runtime.runPromise(
        Effect.scoped(
          Effect.gen(function* () {
            const last = yield* Deferred.make<number>()
            yield* EventQueue.subscribe(Import, {
              concurrency,
              process: () => {
                if (done++ === 0) first = process.hrtime.bigint()
                if (done < n) return Effect.void
                return Effect.asVoid(Deferred.succeed(last, Number(process.hrtime.bigint() - first)))
              }
            })
            return yield* Deferred.await(last)
          })
        )
      )
    }
  }
})

const drain = (concurrency: number, batch: number): Workload => ({
  name: `queue drain, ${concurrency} at once`,
  batch,
  contenders: [
    drained(concurrency),
    {
      name: "amqplib (raw)",
      setup: `consume from a quorum queue with a prefetch of ${concurrency}, JSON.parse, an ack for each; from the first job to the last`,
      goal: 0.9,
      make: async () => {
        const { channel, name, publishAll } = await raw()
        const { connect } = await import("./raw.ts")
        const consuming = await (await connect()).createChannel()
        await consuming.prefetch(concurrency)
        return async (n) => {
          await publishAll(n)
          let done = 0
          let first = 0n
          let tag = ""
          const took = await new Promise<number>((resolve) => {
            const receive = (message: import("amqplib").ConsumeMessage | null) => {
              if (done++ === 0) first = process.hrtime.bigint()
              JSON.parse(message!.content.toString())
              consuming.ack(message!)
              if (done === n) resolve(Number(process.hrtime.bigint() - first))
            }
            void consuming.consume(name, receive).then(({ consumerTag }) => {
              tag = consumerTag
            })
          })
          await consuming.cancel(tag)
          await channel.purgeQueue(name)
          return took
        }
      }
    }
  ]
})

export const queueDrain16 = drain(16, 6_000)
export const queueDrain100 = drain(100, 6_000)

// --- idle ---

export const queueIdle: Workload = {
  name: "idle publish to start, p50",
  batch: 60,
  contenders: [
    {
      name: "cohort",
      setup: "an idle subscription in the same process; until its handler runs",
      make: async () => {
        const { Effect, EventQueue, Import, runtime } = await cohort()
        const { fire, next } = signal()
        await runtime.runPromise(
          Effect.forkDetach(
            Effect.scoped(
              Effect.andThen(EventQueue.subscribe(Import, { process: () => Effect.sync(fire) }), Effect.never)
            )
          )
        )
        return idle(() => runtime.runPromise(EventQueue.publish(Import, payload)), next)
      }
    },
    {
      name: "amqplib (raw)",
      setup: "a confirm channel and a consumer with a prefetch of 1, on two connections",
      goal: 0.87,
      make: async () => {
        const { name, publish } = await raw()
        const { connect } = await import("./raw.ts")
        const consuming = await (await connect()).createChannel()
        const { fire, next } = signal()
        await consuming.prefetch(1)
        await consuming.consume(name, (message) => {
          fire()
          consuming.ack(message!)
        })
        return idle(publish, next)
      }
    }
  ]
}
