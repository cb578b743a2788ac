// A request that a driver decodes.

package io.cosrt;

import java.io.ByteArrayOutputStream;

/** A request that a {@link Driver} decodes. Any thread may use it at any time. */
public final class DrivenRequest {
    private final Request request;
    /** This object guards what the driver's thread has brought. */
    private final ByteArrayOutputStream text = new ByteArrayOutputStream();
    private RequestStatus status;
    private RuntimeException error;

    DrivenRequest(Request request) {
        this.request = request;
        status = request.status();
    }

    /**
     * Waits until there is something to send, or the request has ended. Each text is given once, and after the end
     * there is none. An error comes behind what was decoded before it, and then again with each call.
     *
     * @throws CosException         as for {@link Request#step}
     * @throws InterruptedException the thread was interrupted while it waited; the request goes on
     */
    public synchronized Piece next() throws InterruptedException {
        while (text.size() == 0 && !isEnded()) {
            wait();
        }
        if (text.size() == 0 && error != null) {
            throw error;
        }
        Piece piece = new Piece(status, text.toByteArray());
        text.reset();
        return piece;
    }

    /** Lets the request end soon, with {@link RequestState#CANCELLED}. Never waits for a pass. */
    public void cancel() {
        try {
            request.cancel();
        } catch (CosException poisoned) {
            // Its next step ends it.
        }
    }

    Request request() {
        return request;
    }

    /** Whether there is no further step. */
    synchronized boolean isEnded() {
        return error != null || !status.isOpen();
    }

    /** What a step has brought, on the driver's thread. A request that has ended is closed before others are told. */
    void tell(RequestNews news) {
        try {
            if (news.error() != null) {
                throw news.error();
            }
            byte[] answer = request.answer();
            if (!news.status().isOpen()) {
                request.close();
            }
            add(news.status(), answer);
        } catch (RuntimeException e) {
            fail(e);
        }
    }

    /** Ends the request, on the driver's thread. */
    void fail(RuntimeException failure) {
        request.close();
        synchronized (this) {
            if (!isEnded()) {
                error = failure;
                notifyAll();
            }
        }
    }

    private synchronized void add(RequestStatus now, byte[] answer) {
        status = now;
        text.writeBytes(answer);
        if (answer.length > 0 || isEnded()) {
            notifyAll();
        }
    }
}
