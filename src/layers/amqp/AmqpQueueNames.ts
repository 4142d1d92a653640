/**
 * What a queue is made of in RabbitMQ. Arguments cannot be changed later: whoever
 * changes one changes the version in the names.
 *
 * - `jobs`: a quorum queue.
 * - `dead`: a stream of deaths and of what became of them.
 * - `delays`: a stream that tells when delayed jobs are due, which the ladder has; and what workers there are.
 */
import type { Channel } from "amqplib"
import type { Topology } from "./AmqpConnection.ts"
import * as AmqpDelays from "./AmqpDelays.ts"
import { shortName } from "./names.ts"

/** Deliveries of one message after which RabbitMQ gives up by itself: only a safety net, its attempts end long before. */
const deliveryLimit = 10_000
const segmentBytes = 16_000_000

export interface Names extends Topology {
  readonly jobs: string
  readonly dead: string
  readonly delays: string
  /** Counts what is ready, and the consumers, with those that were cancelled and still hold something. */
  readonly declareJobs: (channel: Channel) => Promise<{ readonly messageCount: number; readonly consumerCount: number }>
}

export const make = (channelName: string): Names => {
  const name = shortName(channelName)
  const jobs = `cohort.jobs.v1.${name}`
  const dead = `cohort.dead.v1.${name}`
  const delays = `cohort.delays.v1.${name}`

  const declareJobs = (channel: Channel) =>
    channel.assertQueue(jobs, {
      durable: true,
      arguments: {
        ...AmqpDelays.quorum,
        "x-delivery-limit": deliveryLimit,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead
      }
    })
  return {
    jobs,
    dead,
    delays,
    declareJobs,
    declare: async (channel) => {
      await channel.assertQueue(dead, {
        durable: true,
        arguments: { "x-queue-type": "stream", "x-stream-max-segment-size-bytes": segmentBytes }
      })
      await channel.assertQueue(delays, {
        durable: true,
        arguments: { "x-queue-type": "stream", "x-stream-max-segment-size-bytes": segmentBytes, "x-max-age": "7D" }
      })
      await declareJobs(channel)
      await AmqpDelays.bindOutlet(channel, jobs)
    }
  }
}
