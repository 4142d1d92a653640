import type { Workload } from "../bench.ts"
import { cohort, type Fanout, latency, rate, subscribers } from "../fanout.ts"
import { payload } from "../queue.ts"

const onRedis = async (tracing: boolean) => cohort((await import("./cohort.ts")).makeRuntime, tracing)

const raw = async (autoPipelining: boolean): Promise<Fanout> => {
  const { connect, timedInFlight } = await import("./raw.ts")
  const publisher = connect({ autoPipelining })
  const channel = `raw-${process.pid}`
  const fanout: Fanout = {
    publish: (n, inFlight) => timedInFlight(n, inFlight, () => publisher.publish(channel, JSON.stringify(payload))),
    onMessage: () => {}
  }
  for (let i = 0; i < subscribers; i++) {
    const subscriber = connect({ autoPipelining: false })
    await subscriber.subscribe(channel)
    subscriber.on("message", (_, text) => {
      if ((JSON.parse(text) as typeof payload).rows === payload.rows) fanout.onMessage()
    })
  }
  return fanout
}

const ours = "a Topic of a Schema.Struct, an instance for each subscriber"
const theirs = "ioredis, a connection for each subscriber, JSON.parse"

export const fanoutRate: Workload = {
  name: "fan-out to 3",
  batch: 6_400,
  contenders: [rate("cohort", ours, () => onRedis(true)), rate("PUBLISH (raw)", theirs, () => raw(true), 0.6)]
}

export const fanoutRateUntraced: Workload = {
  name: "fan-out to 3, tracing off",
  batch: 6_400,
  contenders: [
    rate("cohort", `${ours}; Effect.withTracerEnabled(false)`, () => onRedis(false)),
    rate("PUBLISH (raw)", theirs, () => raw(true), 0.8)
  ]
}

export const fanoutLatency: Workload = {
  name: "fan-out to 3, p50",
  batch: 100,
  contenders: [
    latency("cohort", ours, () => onRedis(true)),
    latency("PUBLISH (raw)", theirs, () => raw(false), 1 / 1.15)
  ]
}
