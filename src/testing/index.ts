/**
 * Clusters in a unit test, and simulations of them.
 *
 * @since 0.2.0
 */
export * as Backend from "./Backend.ts"
export * as Invariant from "./Invariant.ts"
export * as Observation from "./Observation.ts"
export * as Simulation from "./Simulation.ts"
export * as TestCluster from "./TestCluster.ts"
