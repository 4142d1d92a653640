/**
 * Cluster primitives for plugins.
 *
 * @since 0.1.0
 */
export * as Cohort from "./layers/Cohort.ts"
export * from "./services/index.ts"
