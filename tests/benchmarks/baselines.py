"""Straightforward implementations of what the two methods compute, to compare the bundle's with: same values, no care.

They share the bundle's networks and weights where only the order of the arithmetic differs.
"""

import numpy as np
import torch
from PIL import Image
from skimage.morphology import remove_small_objects
from torch.nn import functional as F


def plain_esf(block, x):
    """ESF as it is written: a Laplacian per channel, pools upsampled before they are mixed."""
    channels = x.shape[1]
    kernel = torch.tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]], device=x.device)
    kernel = kernel.expand(1, channels, 3, 3)
    edges = F.conv2d(x, kernel, padding=1)
    attention = torch.sigmoid(block.heat.edge_conv(torch.cat([x, edges], dim=1)))
    gate, weight = block.afg(x), block.coca(x)
    pools = [
        F.interpolate(F.adaptive_avg_pool2d(x, s), x.shape[2:], mode="bilinear", align_corners=True)
        for s in (1, 2, 3, 6)
    ]
    context = F.relu(block.pci.bn(block.pci.conv(torch.cat([x, *pools], dim=1))))
    return block.fusion_conv(x * attention * (1 + gate) + x * weight * (2 - gate) + context)


def plain_ibm(block, x):
    """IBM as it is written: four convolutions, and the side branches, whether they are needed or not."""
    mixed = block.fuse(torch.cat([block.conv1(x), block.conv3(x), block.conv5(x)], dim=1))
    mixed = mixed * (1 + torch.sigmoid(block.edge(x)))
    mixed = mixed * block.channel_attention(mixed)
    mixed = mixed * block.spatial_attention(mixed)
    fused = block.out_conv(mixed + x)
    boundary, embedding = block.boundary_branch(fused), block.embedding_branch(fused)
    return (fused, boundary, embedding) if block.training else fused


PLAIN_FUSION = {"EdgeSemanticFusion": plain_esf, "ImplicitBoundaryMining": plain_ibm}


def with_plain_fusion(classifier):
    """The classifier, its fusion block computed as it is written."""
    block = classifier.fusion
    plain = PLAIN_FUSION[type(block).__name__]
    block.forward = lambda x: plain(block, x)
    return classifier


@torch.no_grad()
def plain_masks(classifier, images, labels, level_weights, background):
    """Pseudo masks, one image after the other, with NumPy after the network: (B, H, W) channel indices."""
    fusion = PLAIN_FUSION[type(classifier.fusion).__name__]
    masks = []
    for image, label in zip(images, labels):
        shallow, middle, x = classifier.backbone.levels(image[None])
        deep = classifier.backbone.deepest(fusion(classifier.fusion, x))
        heads = (classifier.shallow_head, classifier.middle_head, classifier.deep_head)
        cam = 0
        for weight, feature, head in zip(level_weights, (shallow, middle, deep), heads):
            level = F.relu(F.conv2d(feature, head.weight))
            level = F.interpolate(level, image.shape[1:], mode="bilinear", align_corners=False)
            cam = cam + weight * level[0].cpu().numpy()
        torch.sigmoid(classifier.deep_head(deep.mean(dim=(2, 3), keepdim=True)))  # the predicted label
        label = label.cpu().numpy()
        cam = cam * label[:, None, None]
        cam = (cam - cam.min()) / max(cam.max() - cam.min(), 1e-38)
        cam[label == 0] = -np.inf
        mask = cam.argmax(axis=0)
        if background:
            red, green, blue = (image.cpu().numpy() * 255).round()
            white = np.round(0.299 * red + 0.587 * green + 0.114 * blue) > 200
            mask[remove_small_objects(white, max_size=49, connectivity=1)] = len(cam)
        masks.append(mask)
    return np.stack(masks)


def plain_dpr(network, image):
    """DPR with an encoder pass for each path."""
    pspnet = network.pspnet
    main = network.hdfm(pspnet.segmentation_head(pspnet.decoder(pspnet.encoder(image))))
    auxiliary = network.auxiliary_head(pspnet.encoder(image)[-1])
    return main, F.interpolate(auxiliary, main.shape[2:], mode="bilinear", align_corners=True)


def plain_anm(logits, target, alpha=0.4, beta=0.4, gamma=0.2, tau=0.2):
    """ANM, with background."""
    classes = logits.shape[1]
    background = (target == classes).float()[:, None]
    prob = torch.softmax(torch.cat([logits, 100 * background], dim=1), dim=1)
    onehot = F.one_hot(target, classes + 1).permute(0, 3, 1, 2).float()
    confidence, _ = prob.max(dim=1)
    keep = (confidence > tau).float()[:, None]
    entropy = -(keep * onehot * torch.log(prob + 1e-6)).mean()
    uncertainty = -((1 - confidence) * torch.log(1 - confidence + 1e-6)).mean()
    return alpha * entropy + beta * uncertainty + gamma * plain_roughness(prob)


def plain_roughness(prob):
    return (prob[:, :, 1:] - prob[:, :, :-1]).abs().mean() + (prob[..., 1:] - prob[..., :-1]).abs().mean()


def plain_iicb(logits, target, alpha=1.0, beta=0.2, gamma=0.1, delta=0.1, eta=0.1, tau=0.4):
    """IICB without background: loops over classes and pairs, boolean indexing."""
    classes = logits.shape[1]
    prob = torch.softmax(logits, dim=1)
    confidence, _ = prob.max(dim=1)
    keep = (confidence > tau).float()
    onehot = F.one_hot(target, classes).permute(0, 3, 1, 2).float()
    entropy = -(keep[:, None] * onehot * torch.log(prob + 1e-6)).sum() / (classes * keep.sum() + 1e-6)
    uncertainty = -((1 - confidence) * torch.log(1 - confidence + 1e-6)).mean()
    pixels, intra, means, dice = prob.permute(0, 2, 3, 1), 0.0, [], []
    for k in range(classes):
        mask = target == k
        if mask.sum() == 0:
            continue
        own = pixels[mask]
        means.append(own.mean(dim=0))
        if mask.sum() > 1:
            intra = intra + ((own - means[-1]) ** 2).mean() / classes
        if k > 0:
            mask = mask.float()
            dice.append(1 - (2 * (prob[:, k] * mask).sum() + 1e-6) / (prob[:, k].sum() + mask.sum() + 1e-6))
    similarity = []
    for i in range(len(means)):
        for j in range(i + 1, len(means)):
            similarity.append(F.cosine_similarity(means[i], means[j], dim=0))
    terms = intra + torch.stack(similarity).mean()
    return (
        alpha * entropy
        + beta * uncertainty
        + gamma * plain_roughness(prob)
        + delta * terms
        + eta * torch.stack(dice).mean()
    )


def plain_dpr_loss(logits, target):
    main, auxiliary = logits
    return plain_iicb(main, target) + 0.4 * plain_iicb(auxiliary, target)


PLAIN_STAGE_2 = {"esfan": (lambda pspnet, image: pspnet(image), plain_anm), "ibdr": (plain_dpr, plain_dpr_loss)}


def plain_mean_iou(preds, trues, num_values):
    """Mean IoU without background, from a confusion matrix counted image by image in NumPy."""
    matrix = np.zeros((num_values, num_values))
    for pred, true in zip(preds, trues):
        kept = true > 0
        matrix += np.bincount(num_values * true[kept] + pred[kept], minlength=num_values**2).reshape(num_values, -1)
    hits = np.diag(matrix)[1:]
    return np.mean(hits / (matrix.sum(axis=1)[1:] + matrix.sum(axis=0)[1:] - hits))


def decode(paths):
    """Images (B, 3, H, W) in [0, 1], read from their files."""
    return torch.stack([torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).float() / 255 for path in paths])
