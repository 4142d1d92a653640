/**
 * Every metric that Cohort keeps, by name: OpenTelemetry's for messaging where it has one, `cohort.…` otherwise.
 * Durations are in seconds. What a backend, a channel, a cache or an instance has of its own is an attribute:
 * `messaging.system`, `messaging.destination.name`, `cohort.cache.name`, `messaging.client.id`.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"

const counter = (name: string, description: string) => Metric.counter(name, { description, incremental: true })

/** Stored cache payloads that no longer decode, taken as misses. @since 0.1.0 */
export const cacheUndecodable = counter("cohort.cache.undecodable", "Stored cache payloads that no longer decode")
/** `wrap` calls that ran their load without the cache, because the backend was away. @since 0.1.0 */
export const cacheBypassed = counter("cohort.cache.bypassed", "Loads run without the cache while its backend was away")
/** Broadcasts that no longer decode. @since 0.1.0 */
export const messagesUndecodable = counter("cohort.pubsub.undecodable", "Broadcast messages that do not decode")
/** Broadcast handlers that failed. @since 0.1.0 */
export const handlersFailed = counter("cohort.pubsub.handler.failures", "Broadcast handlers that failed")
/** Moments in which broadcasts may have been missed. @since 0.1.0 */
export const gaps = counter("cohort.pubsub.gaps", "Moments in which broadcasts may have been missed")
/** Resyncs of a sync channel. @since 0.1.0 */
export const resyncs = counter("cohort.sync.resyncs", "Resyncs run after a gap")
/** Resyncs that failed, and are retried. @since 0.1.0 */
export const resyncsFailed = counter("cohort.sync.resync.failures", "Resyncs that failed and are retried")
/** Messages and jobs that were published in a transaction and could not be sent after its commit. @since 0.2.0 */
export const afterCommitFailures = counter(
  "cohort.after_commit.failures",
  "Messages and jobs that could not be sent after the commit of their transaction"
)
/** Messages and jobs handed to the broker, by `messaging.system` and `messaging.destination.name`. @since 0.2.0 */
export const sent = counter("messaging.client.sent.messages", "Messages and jobs handed to the broker")
/** Broadcasts handed to handlers, and job attempts that ended by `cohort.outcome` (`ack`, `retry`, `bury`, `release`). @since 0.2.0 */
export const consumed = counter("messaging.client.consumed.messages", "Messages handled, and job attempts that ended")
/** OpenTelemetry's, in seconds. @internal */
export const processBoundaries = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
/** How long handlers of jobs take. @since 0.2.0 */
export const processDuration = Metric.histogram("messaging.process.duration", {
  description: "Seconds that handlers of jobs take",
  boundaries: processBoundaries
})
/** Cache look-ups that found something, by `cohort.cache.name`. @since 0.2.0 */
export const cacheHits = counter("cohort.cache.hits", "Cache look-ups that found something")
/** Cache look-ups that found nothing, by `cohort.cache.name`. @since 0.2.0 */
export const cacheMisses = counter("cohort.cache.misses", "Cache look-ups that found nothing")
/** Settlements refused because someone else has the job by now. @since 0.1.0 */
export const jobsStale = counter("cohort.queue.stale", "Settlements refused because the lease had passed on")
/** Leases lost before they were released. @since 0.1.0 */
export const leasesLost = counter("cohort.lock.leases.lost", "Leases lost before they were released")
/** Whether a connection to a broker is up: 1 or 0, by backend, role and, where it has one, name. @since 0.2.0 */
export const connectionUp = Metric.gauge("cohort.connection.up", {
  description: "Whether a connection to a broker is up, by backend and role"
})
/** Connections to a broker that were lost, by backend and role. @since 0.2.0 */
export const connectionsLost = counter("cohort.connections.lost", "Connections to a broker that were lost")
/** Queue channels that hold jobs and that no live instance serves, as the oldest instance sees it. @since 0.2.0 */
export const queuesUnserved = Metric.gauge("cohort.queues.unserved", {
  description: "Queue channels with jobs that no live instance serves"
})
/**
 * Jobs of each queue channel, by `messaging.destination.name` and `cohort.job.state` (`ready`, `delayed`, `in_flight`,
 * `dead`), as `QueueAlarms` of the oldest instance last saw them; no other instance has them. @since 0.2.0
 */
export const queueJobs = Metric.gauge("cohort.queue.jobs", {
  description: "Jobs of a queue channel, by state, as the oldest instance sees them"
})
/** Rows that wait in the outbox, by kind (`sync`, `job`). @since 0.2.0 */
export const outboxDepth = Metric.gauge("cohort_outbox_depth", { description: "Rows that wait in the outbox, by kind" })
/** Age of the oldest row that waits in the outbox, in seconds, by kind. @since 0.2.0 */
export const outboxAge = Metric.gauge("cohort_outbox_age_seconds", {
  description: "Age of the oldest row that waits in the outbox, by kind"
})
/** Rows that the broker refused and that were set aside, by kind. @since 0.2.0 */
export const outboxFailed = Metric.gauge("cohort_outbox_failed", {
  description: "Outbox rows that the broker refused and that were set aside, by kind"
})
/** Outbox rows that this process has sent. @since 0.2.0 */
export const outboxRelayed = counter("cohort_outbox_relayed", "Outbox rows that this process has sent")

/**
 * Begins the counters of trouble at zero, for the process that tells them: a counter that is first heard of at one has
 * not grown, for whoever asks by how much it did. @since 0.2.0
 */
export const fromZero: Effect.Effect<void> = Effect.forEach(
  [
    cacheUndecodable,
    cacheBypassed,
    messagesUndecodable,
    handlersFailed,
    gaps,
    resyncs,
    resyncsFailed,
    afterCommitFailures,
    jobsStale,
    leasesLost
  ],
  (counter) => Metric.update(counter, 0),
  { discard: true }
)
