// What one request is told by a step of many.

package io.cosrt;

/**
 * What {@link Request#stepMany} tells of a request: how it stands, or an error.
 *
 * @param status null with an error
 * @param error  a {@link CosException} of this request alone, or {@link IllegalStateException} if it is closed; or null
 */
public record RequestNews(RequestStatus status, RuntimeException error) {}
