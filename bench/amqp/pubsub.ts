import type { Workload } from "../bench.ts"
import { cohort, type Fanout, latency, rate, subscribers } from "../fanout.ts"
import { payload } from "../queue.ts"

const onRabbit = async () => cohort((await import("./cohort.ts")).makeRuntime, true)

const raw = async (): Promise<Fanout> => {
  const { connect } = await import("./raw.ts")
  const { timedInFlight } = await import("../bench.ts")
  const publisher = await (await connect()).createConfirmChannel()
  const exchange = `raw-${process.pid}`
  const key = "news"
  await publisher.assertExchange(exchange, "topic", { durable: true, autoDelete: true })
  const publish = () =>
    new Promise<void>((resolve, reject) => {
      publisher.publish(exchange, key, Buffer.from(JSON.stringify(payload)), {}, (error) =>
        error === null ? resolve() : reject(error)
      )
    })
  const fanout: Fanout = {
    publish: (n, inFlight) => timedInFlight(n, inFlight, publish),
    onMessage: () => {}
  }
  for (let i = 0; i < subscribers; i++) {
    const channel = await (await connect()).createChannel()
    const { queue } = await channel.assertQueue("", { exclusive: true, autoDelete: true, durable: false })
    await channel.bindQueue(queue, exchange, key)
    await channel.consume(
      queue,
      (message) => {
        if ((JSON.parse(message!.content.toString()) as typeof payload).rows === payload.rows) fanout.onMessage()
      },
      { noAck: true }
    )
  }
  return fanout
}

const ours = "a Topic of a Schema.Struct, an instance for each subscriber"
const theirs =
  "amqplib: a topic exchange, confirms, a connection and an exclusive queue for each subscriber, JSON.parse"

export const fanoutRate: Workload = {
  name: "fan-out to 3",
  batch: 6_400,
  contenders: [rate("cohort", ours, onRabbit), rate("amqplib (raw)", theirs, raw, 0.9)]
}

export const fanoutLatency: Workload = {
  name: "fan-out to 3, p50",
  batch: 100,
  contenders: [latency("cohort", ours, onRabbit), latency("amqplib (raw)", theirs, raw, 1 / 1.15)]
}
