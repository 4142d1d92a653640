/**
 * Every metric that Cohort keeps, by name.
 *
 * Only what is rare or costs a round trip is counted: a cache hit in memory is
 * cheaper than a counter.
 *
 * @since 0.1.0
 */
import * as Metric from "effect/Metric"

const counter = (name: string, description: string) => Metric.counter(name, { description, incremental: true })

/** Stored cache payloads that no longer decode, taken as misses. @since 0.1.0 */
export const cacheUndecodable = counter("cohort_cache_undecodable", "Stored cache payloads that no longer decode")
/** `wrap` calls that ran their load without the cache, because the backend was away. @since 0.1.0 */
export const cacheBypassed = counter("cohort_cache_bypassed", "Loads run without the cache while its backend was away")
/** Broadcasts that no longer decode. @since 0.1.0 */
export const messagesUndecodable = counter("cohort_pubsub_undecodable", "Broadcast messages that do not decode")
/** Broadcast handlers that failed. @since 0.1.0 */
export const handlersFailed = counter("cohort_pubsub_handler_failures", "Broadcast handlers that failed")
/** Moments in which broadcasts may have been missed. @since 0.1.0 */
export const gaps = counter("cohort_pubsub_gaps", "Moments in which broadcasts may have been missed")
/** Resyncs of a sync channel. @since 0.1.0 */
export const resyncs = counter("cohort_sync_resyncs", "Resyncs run after a gap")
/** Resyncs that failed, and are retried. @since 0.1.0 */
export const resyncsFailed = counter("cohort_sync_resync_failures", "Resyncs that failed and are retried")
/** Messages and jobs that were published in a transaction and could not be sent after its commit. @since 0.2.0 */
export const afterCommitFailures = counter(
  "cohort_after_commit_failures",
  "Messages and jobs that could not be sent after the commit of their transaction"
)
/** Job attempts that ended, by outcome (`ack`, `retry`, `bury`, `release`). @since 0.1.0 */
export const jobsSettled = counter("cohort_queue_settled", "Job attempts that ended, by outcome")
/** {@link jobsSettled}, with its outcome as attribute. @since 0.1.0 */
export const jobsSettledBy = {
  ack: Metric.withAttributes(jobsSettled, { outcome: "ack" }),
  retry: Metric.withAttributes(jobsSettled, { outcome: "retry" }),
  release: Metric.withAttributes(jobsSettled, { outcome: "release" }),
  bury: Metric.withAttributes(jobsSettled, { outcome: "bury" })
}
/** Settlements refused because someone else has the job by now. @since 0.1.0 */
export const jobsStale = counter("cohort_queue_stale", "Settlements refused because the lease had passed on")
/** Leases lost before they were released. @since 0.1.0 */
export const leasesLost = counter("cohort_lock_leases_lost", "Leases lost before they were released")
/** Whether a connection to a broker is up: 1 or 0, by backend and role. @since 0.2.0 */
export const connectionUp = Metric.gauge("cohort_connection_up", {
  description: "Whether a connection to a broker is up, by backend and role"
})
/** Connections to a broker that were lost, by backend and role. @since 0.2.0 */
export const connectionsLost = counter("cohort_connections_lost", "Connections to a broker that were lost")
/** Queue channels that hold jobs and that no live instance serves, as the oldest instance sees it. @since 0.2.0 */
export const queuesUnserved = Metric.gauge("cohort_queues_unserved", {
  description: "Queue channels with jobs that no live instance serves"
})
