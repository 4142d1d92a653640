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

const bull = async () => {
  const { Queue, QueueEvents, Worker } = await import("bullmq")
  const { hostname: host, port } = new URL(process.env.REDIS_URL!)
  const connection = { host, port: Number(port) }
  const name = `bench-${process.pid}`
  const queue = new Queue(name, { connection, defaultJobOptions: { removeOnComplete: true } })
  await queue.waitUntilReady()
  return { connection, name, queue, QueueEvents, Worker }
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
        const { publish, runtime, time } = await cohort()
        const { connect } = await import("./raw.ts")
        const redis = connect({ autoPipelining: false })
        return async (n) => {
          const took = await time(publish(n))
          await redis.flushall()
          void runtime
          return took
        }
      }
    },
    {
      name: "BullMQ",
      setup: "queue.add, 64 async functions; removeOnComplete",
      goal: 2.4,
      make: async () => {
        const { queue } = await bull()
        const { connect, timedInFlight } = await import("./raw.ts")
        const redis = connect({ autoPipelining: false })
        return async (n) => {
          const took = await timedInFlight(n, many, () => queue.add("import", payload))
          await redis.flushall()
          return took
        }
      }
    },
    {
      name: "ioredis XADD (raw)",
      setup: "redis.xadd, 64 async functions, enableAutoPipelining; no Schema",
      make: async () => {
        const { connect, timedInFlight } = await import("./raw.ts")
        const redis = connect({ autoPipelining: true })
        const key = `raw:${process.pid}`
        return async (n) => {
          const took = await timedInFlight(n, many, () => redis.xadd(key, "*", "job", JSON.stringify(payload)))
          await redis.del(key)
          return took
        }
      }
    }
  ]
}

// --- drain ---

const drained = (concurrency: number): Contender => ({
  name: "cohort",
  setup: `one subscription with concurrency ${concurrency}; timeout, retries and leases at their defaults`,
  make: async () => {
    const { Deferred, Effect, EventQueue, Import, publish, runtime, time } = await cohort()
    return async (n) => {
      await runtime.runPromise(publish(n))
      let done = 0
      return time(
        Effect.scoped(
          Effect.gen(function* () {
            const last = yield* Deferred.make<void>()
            yield* EventQueue.subscribe(Import, {
              concurrency,
              process: () => (++done === n ? Effect.asVoid(Deferred.succeed(last, undefined)) : Effect.void)
            })
            yield* Deferred.await(last)
            while (true) {
              const { inFlight } = yield* EventQueue.depth(Import)
              if (inFlight === 0) return
            }
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
      name: "BullMQ",
      setup: `a Worker with concurrency ${concurrency}; jobs added with addBulk, removeOnComplete; until the last is completed`,
      goal: 4,
      make: async () => {
        const { connection, name, queue, Worker } = await bull()
        const { timed } = await import("../bench.ts")
        return async (n) => {
          for (let i = 0; i < n; i += 1_000) {
            await queue.addBulk(
              Array.from({ length: Math.min(1_000, n - i) }, () => ({ name: "import", data: payload }))
            )
          }
          let done = 0
          let close: Promise<void> = Promise.resolve()
          const took = await timed(
            () =>
              new Promise<void>((resolve) => {
                const worker = new Worker(name, async () => {}, { connection, concurrency })
                worker.on("completed", () => {
                  if (++done < n) return
                  resolve()
                  close = worker.close()
                })
              })
          )
          await close
          return took
        }
      }
    }
  ]
})

export const queueDrain1 = drain(1, 3_000)
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
      name: "BullMQ",
      setup: "an idle Worker in the same process",
      goal: 2,
      make: async () => {
        const { connection, name, queue, Worker } = await bull()
        const { fire, next } = signal()
        const worker = new Worker(name, async () => fire(), { connection })
        await worker.waitUntilReady()
        return idle(() => queue.add("import", payload), next)
      }
    },
    {
      name: "LPUSH and BRPOP (raw)",
      setup: "two ioredis connections",
      make: async () => {
        const { connect } = await import("./raw.ts")
        const publisher = connect({ autoPipelining: false })
        const consumer = connect({ autoPipelining: false })
        const key = `raw:${process.pid}`
        const { fire, next } = signal()
        const loop = async () => {
          while (true) {
            await consumer.brpop(key, 0)
            fire()
          }
        }
        void loop()
        return idle(() => publisher.lpush(key, JSON.stringify(payload)), next)
      }
    }
  ]
}
