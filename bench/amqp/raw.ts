/** The raw limit: amqplib, with confirms and acknowledgements, on the kind of queue that ours has. */
import { type Channel, type ChannelModel, connect as amqpConnect } from "amqplib"

export const connect = (): Promise<ChannelModel> => amqpConnect(process.env.AMQP_URL!, { noDelay: true })

export const quorum = {
  durable: true,
  arguments: { "x-queue-type": "quorum", "x-overflow": "reject-publish", "x-delivery-limit": 10_000 }
}

/** What every message is published with. */
export const properties = { persistent: true, mandatory: true }

let queues = 0

/** Makes a quorum queue of its own. */
export const declareQueue = async (channel: Channel): Promise<string> => {
  const name = `raw-${process.pid}-${queues++}`
  await channel.assertQueue(name, quorum)
  return name
}
