"""The operators that ONNX Runtime has; made by ``tools/runtime_operators.py``."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest

Kernels = dict[str, tuple[tuple[int, int | None], ...]]
"""For each operator the versions for which there are kernels; None: that very version, or no later
one is known. Operators that are not ONNX's own begin with their domain and "::".
"""


def _kernels(text: str) -> Kernels:
    """What stands behind "::" is of that domain; an operator without versions has "1+"."""
    table: Kernels = {}
    domain = ""
    for entry in text.split():
        if entry.endswith("::"):
            domain = entry
        else:
            name, _, versions = entry.partition(":")
            table[domain + name] = tuple(_ranges((versions or "1+").split(",")))
    return table


def _ranges(texts: Sequence[str]) -> Iterator[tuple[int, int | None]]:
    """A range without an end goes on to the next, the last one is of one version."""
    for text, after in zip_longest(texts, texts[1:]):
        start, _, end = text.rstrip("+").partition("-")
        if text.endswith("+"):
            yield int(start), None
        elif end or after is None:
            yield int(start), int(end or start)
        else:
            yield int(start), int(after.rstrip("+").partition("-")[0]) - 1


CPU = _kernels(
    """
    Abs:6,13+ Acos:7,22+ Acosh:9,22+ Add:7,13,14+ Affine AffineGrid:20+ And:7+ ArgMax:1,11,13+
    ArgMin:1,11,13+ Asin:7,22+ Asinh:9,22+ Atan:7,22+ Atanh:9,22+ Attention:23,24+
    AveragePool:7,10,11,19,22+ BatchNormalization:7,9,14,15+ BitCast:26+ BitShift:11,28+
    BitwiseAnd:18+ BitwiseNot:18+ BitwiseOr:18+ BitwiseXor:18+ BlackmanWindow:17+
    Cast:6,13,19,21,23,24,25,28+ Ceil:6,13+ Celu:12,28+ Clip:6,11,12,13+ Col2Im:18+
    Compress:9,11,28+ Concat:4,11,13+ ConcatFromSequence:11+ ConstantOfShape:9,20,21,23,24,25+
    Conv:1,11,22+ ConvInteger:10+ ConvTranspose:1,11,22+ Cos:7,22+ Cosh:9,22+ Crop CumProd:26+
    CumSum:11,14+ DFT:17,20+ DeformConv:19,22+ DepthToSpace:1,11,13,28+
    DequantizeLinear:10,13,19,21,23,24,25+ Det:11,22+ Div:7,13,14+ Dropout:7,10,12,13,22+
    DynamicQuantizeLinear:11+ DynamicSlice Einsum:12,28+ Elu:6,22+ Equal:7,11,13,19+ Erf:9,13+
    Exp:6,13+ Expand:8,13+ EyeLike:9,22+ Flatten:1,9,11,13,21,23,24,25+ Floor:6,13+ GRU:7,14,22+
    Gather:1,11,13+ GatherElements:11,13+ GatherND:11,12,13+ Gelu:20+ Gemm:7,9,11,13+
    GlobalAveragePool:1,22+ GlobalLpPool:2+ GlobalMaxPool:1,22+ Greater:7,9,13+
    GreaterOrEqual:12,16+ GridSample:16,20,22+ HammingWindow:17+ HannWindow:17+ HardSigmoid:6,22+
    Hardmax:1,11,13+ Identity:1,13,14,16,19,21,23,24,25+ If:1,11,13,16,19,21,23,24,25+ ImageScaler
    InstanceNormalization:6,22+ IsInf:10,20+ IsNaN:9,13,20+ LRN:1,13+ LSTM:7,14,22+
    LayerNormalization:1,17+ LeakyRelu:6,16+ Less:7,9,13+ LessOrEqual:12,16+ Log:6,13+
    LogSoftmax:1,11,13+ Loop:1,11,13,16,19,21,23,24,25+ LpNormalization:1,22+ LpPool:2,11,18,22+
    MatMul:1,9,13+ MatMulInteger:10+ Max:6,8,12,13+ MaxPool:1,8,12,22+ MaxRoiPool MaxUnpool:9,11,22+
    Mean:6,8,13+ MeanVarianceNormalization:1,9,13+ MelWeightMatrix:17+ MemcpyFromHost MemcpyToHost
    Min:6,8,12,13+ Mod:10,13,28+ Mul:7,13,14+ Multinomial:7+ Neg:6,13+ NonMaxSuppression:10,11+
    NonZero:9,13+ Not OneHot:9,11,28+ Optional:15+ OptionalGetElement:15,18+
    OptionalHasElement:15,18+ Or:7+ PRelu:7,9,16+ Pad:2,11,13,18,19,21,23,24,25+ ParametricSoftplus
    Pow:7,12,13,15+ QLinearConv:10+ QLinearMatMul:10,21+ QuantizeLinear:10,13,19,21,23,24,25+
    RMSNormalization:23+ RNN:7,14,22+ RandomNormal RandomNormalLike RandomUniform RandomUniformLike
    Range:11,27+ Reciprocal:6,13+ ReduceL1:1,11,13,18+ ReduceL2:1,11,13,18+ ReduceLogSum:1,11,13,18+
    ReduceLogSumExp:1,11,13,18+ ReduceMax:1,11,12,13,18,20+ ReduceMean:1,11,13,18+
    ReduceMin:1,11,12,13,18,20+ ReduceProd:1,11,13,18+ ReduceSum:1,11,13+
    ReduceSumSquare:1,11,13,18+ RegexFullMatch:20+ Relu:6,13,14+ Reshape:1,5,13,14,19,21,23,24,25+
    Resize:10,11,13,18,19+ ReverseSequence:10,28+ RoiAlign:10,16+ RotaryEmbedding:23+ Round:11,22+
    STFT:17+ Scale ScaledTanh Scan:8,9,11,16,19,21,23,24,25+ Scatter:9-10
    ScatterElements:11,13,16,18+ ScatterND:11,13,16,18+ Selu:6,22+ SequenceAt:11+
    SequenceConstruct:11+ SequenceEmpty:11+ SequenceErase:11+ SequenceInsert:11+ SequenceLength:11+
    Shape:1,13,15,19,21,23,24,25+ Shrink:9+ Sigmoid:6,13+ Sign:9,13+ SimplifiedLayerNormalization
    Sin:7,22+ Sinh:9,22+ Size:1,13,19,21,23,24,25+ Slice:1,10,11,13+ Softmax:1,11,13+ Softplus:1,22+
    Softsign:1,22+ SpaceToDepth:1,13,28+ Split:2,11,13,18+ SplitToSequence:11,24+ Sqrt:6,13+
    Squeeze:1,11,13,21,23,24,25+ StringConcat:20+ StringNormalizer:10+ StringSplit:20+ Sub:7,13,14+
    Sum:6,8,13+ Tan:7,22+ Tanh:6,13+ TensorScatter:24+ TfIdfVectorizer:9+ ThresholdedRelu:1,10,22+
    Tile:6,13+ TopK:1,10,11,24+ Transpose:1,13,21,23,24,25+ Trilu:14+ Unique:11,28+
    Unsqueeze:1,11,13,21,23,24,25+ Upsample:7,9 Where:9,16+ Xor:7+
    ai.onnx.ml:: ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer
    FeatureVectorizer Imputer LabelEncoder:1,2,4+ LinearClassifier LinearRegressor Normalizer
    OneHotEncoder SVMClassifier SVMRegressor Scaler TreeEnsemble:5+ TreeEnsembleClassifier:1,3+
    TreeEnsembleRegressor:1,3+ ZipMap
    com.microsoft.nchwc:: AveragePool Conv GlobalAveragePool GlobalMaxPool MaxPool ReorderInput
    ReorderOutput Upsample
    com.microsoft:: Attention AttnLSTM BeamSearch BiasGelu BifurcationDetector BranchwiseRMSNorm
    CDist CausalConvWithState ConvTransposeWithDynamicPads CropAndResize
    DecoderMaskedMultiHeadAttention DequantizeLinear DynamicQuantizeLSTM DynamicQuantizeMatMul
    DynamicTimeWarping EmbedLayerNormalization EngramGate ExpandDims FastGelu FusedConv FusedGemm
    FusedMatMul GatedAdd GatedDeltaNet GatedRMSNorm GatherBlockQuantized GatherND GatherPacked Gelu
    GreedySearch GridSample GroupQueryAttention HyperConnectionPostMix HyperConnectionPreMix Inverse
    LinearAttention LinearAttentionGate MRotaryEmbedding MatMulBnb4 MatMulFpQ4 MatMulInteger16
    MatMulIntegerToFloat MatMulNBits MaxpoolWithMask MoE MoEGroupRouter MultiHeadAttention
    MurmurHash3 NGramHashMapping NGramRepeatBlock NhwcMaxPool Pad QAttention
    QEmbedLayerNormalization QGemm QLinearAdd QLinearAveragePool QLinearConcat QLinearConv
    QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul QLinearSigmoid QLinearSoftmax QLinearWhere
    QMoE QuantizeLinear QuickGelu Range RotaryEmbedding SampleOp Sampling ScaledSiLU
    SkipLayerNormalization SkipSimplifiedLayerNormalization SparseAttention SparseToDenseMatMul
    Tokenizer TransposeMatMul Trilu UnfoldTensor Unique VarlenCausalConvWithState
    VarlenNGramHashMapping WhisperBeamSearch WordConvEmbedding
    """
)
"""Kernels of the CPU execution provider of onnxruntime 1.32.0."""

CUDA = _kernels(
    """
    Abs:6,13+ Add:7,13,14+ Affine And:7+ ArgMax:1,12,13+ ArgMin:1,12,13+ Attention:23,24+
    AveragePool:7,10,11,19,22+ BatchNormalization:7,9,14,15+ Cast:6,9,13,19,21,23,25+ Ceil:6,13+
    Clip:6,11,12,13+ Compress:9,11+ Concat:4,11,13+ ConcatFromSequence:11+
    ConstantOfShape:9,21,23,25+ Conv:1,11,22+ ConvTranspose:1,11,22+ Cos:7,22+ Crop CumSum:11,14+
    DeformConv:19,22+ DepthToSpace:1,11,13+ DequantizeLinear:10,13,19,21,23,25+ Div:7,13,14+
    Dropout:7,10,12,13+ DynamicSlice Einsum:12+ Elu:6+ Equal:7,11,13,19+ Erf:9,13+ Exp:6,13+
    Expand:8,13+ EyeLike:9+ Flatten:1,9,11,13,21,23,25+ Floor:6,13+ GRU:7,14,22+ Gather:1,11,13+
    GatherElements:11,13+ GatherND:11,12,13+ Gelu:20+ Gemm:7,9,11,13+ GlobalAveragePool:1,22+
    GlobalMaxPool:1,22+ Greater:7,9,13+ GreaterOrEqual:12,16+ GridSample:16,20,22+ HardSigmoid:6,22+
    HardSwish:14,22+ Identity:1,13,14,19,21,23,25+ If:1,11,13,19,21,23,25+ ImageScaler
    InstanceNormalization:6+ IsInf:10,20+ IsNaN:9,13,20+ LRN:1,13+ LSTM:7,14,22+
    LayerNormalization:1,17+ LeakyRelu:6,16+ Less:7,9,13+ LessOrEqual:12,16+ Log:6,13+
    LogSoftmax:1,11,13+ Loop:1,11,13,19,21,23,25+ LpNormalization:1,22+ MatMul:1,9,13+
    MatMulInteger:10+ Max:6,12,13+ MaxPool:1,8,10,11,12+ MemcpyFromHost MemcpyToHost Min:6,12,13+
    Mod:10,13+ Mul:7,13,14+ Neg:6,13+ NonMaxSuppression:10,11+ NonZero:9,13+ Not OneHot:11+ Or:7+
    PRelu:7,9,16+ Pad:2,11,13,18,19,21,23,24,25+ ParametricSoftplus Pow:7,12,13,15+
    QuantizeLinear:10,13,19,21,23,25+ RMSNormalization:23+ RNN:7,14,22+ RandomNormal:1,22+
    RandomNormalLike:1,22+ RandomUniform:1,22+ RandomUniformLike:1,22+ Range:11,27+ Reciprocal:6,13+
    ReduceL1:1,18+ ReduceL2:1,18+ ReduceLogSum:1,18+ ReduceLogSumExp:1,18+ ReduceMax:1,18,20+
    ReduceMean:1,18+ ReduceMin:1,18,20+ ReduceProd:1,18+ ReduceSum:1,13+ ReduceSumSquare:1,18+
    Relu:6,13,14+ Reshape:1,5,13,14,19,21,23,25+ Resize:10,11,13,18,19+ ReverseSequence:10+
    RoiAlign:10,16,22+ RotaryEmbedding:23+ Round:11,22+ ScaledTanh Scan:8,9,11,16,19,21,23,25+
    Scatter:9-10 ScatterElements:11,13,16,18+ ScatterND:11,13,16,18+ Selu:6+ SequenceAt:11+
    SequenceConstruct:11+ SequenceEmpty:11+ SequenceErase:11+ SequenceInsert:11+ SequenceLength:11+
    Shape:1,13,15,19,21,23,25+ Shrink:9+ Sigmoid:6,13+ Sign:13+ SimplifiedLayerNormalization
    Sin:7,22+ Size:1,13,21,23,25+ Slice:1,10,11,13+ Softmax:1,11,13+ Softplus:1,22+ Softsign:1,22+
    SpaceToDepth:1,13+ Split:2,11,13,18+ Sqrt:6,13+ Squeeze:1,11,13,21,23,24,25+ Sub:7,13,14+
    Sum:6,8,13+ Tanh:6,13+ TensorScatter:24+ ThresholdedRelu:1+,10+ Tile:6,13+ TopK:1,10,11,24+
    Transpose:1,13,21,23,25+ Trilu:14+ Unsqueeze:1,11,13,21,23,24,25+ Upsample:7,9 Where:9,16+
    Xor:7+
    ai.onnx.ml:: LabelEncoder:2,4+
    com.microsoft:: Attention BeamSearch BiasAdd BiasDropout BiasGelu BiasSoftmax BiasSplitGelu
    BitmaskBiasDropout BitmaskDropout BranchwiseRMSNorm CausalConvWithState ComplexMul
    ComplexMulConj ConvTransposeWithDynamicPads DecoderAttention DecoderMaskedMultiHeadAttention
    DecoderMaskedSelfAttention DequantizeLinear DequantizeWithOrder DynamicSparseAttention
    DynamicTimeWarping EmbedLayerNormalization EngramGate FastGelu FusedConv FusedMatMul GatedAdd
    GatedDeltaNet GatedRMSNorm GatedRelativePositionBias GatherBlockQuantized Gelu GemmFloat8
    GemmaRotaryEmbedding GreedySearch GridSample GroupNorm GroupQueryAttention
    HyperConnectionPostMix HyperConnectionPreMix Inverse Irfft LinearAttention LinearAttentionGate
    LongformerAttention MRotaryEmbedding MatMulBlockQuantizedFp4Weight MatMulBlockQuantizedFp8Weight
    MatMulBnb4 MatMulNBits MoE MultiHeadAttention NGramHashMapping NGramRepeatBlock NhwcConv
    PackedAttention PackedMultiHeadAttention PackedSparseAttentionIndexer PagedAttention QAttention
    QMoE QOrderedAttention QOrderedGelu QOrderedLayerNormalization QOrderedLongformerAttention
    QOrderedMatMul QuantizeLinear QuantizeWithOrder QuickGelu RelativePositionBias RemovePadding
    RestorePadding Rfft RotaryEmbedding Sampling ScaledSiLU SkipGroupNorm SkipLayerNormalization
    SkipSimplifiedLayerNormalization SparseAttention SparseAttentionIndexer SparsePagedAttention
    TransposeMatMul Trilu UnfoldTensor VarlenCausalConvWithState VarlenNGramHashMapping
    WhisperBeamSearch
    com.ms.internal.nhwc:: AveragePool:7,10,11,19,22+ BatchNormalization:7,9,14,15+ Conv:1,11,22+
    ConvTranspose:1,11,22+ DepthToSpace:1,11,13+ GlobalAveragePool:1,22+ GlobalMaxPool:1,22+
    GridSample:16,20,22+ LRN:1,13+ MaxPool:1,8,10,11,12+ SpaceToDepth:1,13+
    """
)
"""Kernels of the CUDA execution provider of onnxruntime-gpu 1.31.1."""

TRAINING_ONLY = frozenset(
    _kernels(
        """
    AveragePoolGrad MaxPoolGrad SparseSoftmaxCrossEntropy SparseSoftmaxCrossEntropyGrad
    com.microsoft:: AdamOptimizer AdamWOptimizer AdasumAllReduce All BatchNormInternal
    BatchNormalizationGrad BatchScale BiasFastGeluGrad_dX BiasGeluGrad_dX BiasSoftmaxDropout
    BitmaskDropoutGrad BroadcastGradientArgs ConcatTraining ConvGrad ConvTransposeGrad DivGrad
    DropoutGrad FakeQuant FakeQuantGrad FastGeluGrad FlattenAndUnpad GRUGrad GRUTraining
    GatherElementsGrad GatherGrad GatherNDGrad GeluGrad GistBinarizeDecoder GistBinarizeEncoder
    GistPack16Decoder GistPack16Encoder GistPack1Decoder GistPack1Encoder GistPack8Decoder
    GistPack8Encoder GistPackMsfp15Decoder GistPackMsfp15Encoder Group InPlaceAccumulator
    InPlaceAccumulatorV2 InplaceClipGradNorm InvertibleLayerNormalizationGrad IsFinite LSTMGrad
    LSTMTraining LambOptimizer LayerNormalizationGrad LeakyReluGrad LogSoftmaxGrad LogSoftmaxGrad_13
    MegatronF MegatronG MixedPrecisionScale NcclAllGather NcclAllReduce NcclReduceScatter
    NegativeLogLikelihoodLossInternal NegativeLogLikelihoodLossInternal2 PadAndUnflatten PassThrough
    PythonOp PythonOpGrad QuickGeluGrad RecordEvent Recv ReduceAllL2 ReduceSumTraining ReluGrad
    ResizeGrad SGDOptimizer SGDOptimizerV2 Scale ScaledSum Send ShrunkenGather SigmoidGrad
    SimplifiedLayerNormalizationGrad SliceGrad SoftmaxCrossEntropy SoftmaxCrossEntropyGrad
    SoftmaxCrossEntropyLossGrad SoftmaxCrossEntropyLossInternal SoftmaxCrossEntropyLossInternalGrad
    SoftmaxDropoutGrad SoftmaxGrad SoftmaxGrad_13 SplitTraining SummaryHistogram SummaryMerge
    SummaryScalar SummaryText TanhGrad View WaitEvent YieldOp ZeroGradient
    org.pytorch.aten:: ATen
        """
    )
)
"""What onnxruntime-training 1.19.2 has and onnxruntime 1.19.2 has not."""

ADDED_LATER = frozenset(
    _kernels(
        """
    com.microsoft:: BranchwiseRMSNorm CausalConvWithState EngramGate GatedAdd GatedDeltaNet
    GatedRMSNorm GatherBlockQuantized GatherPacked HyperConnectionPostMix HyperConnectionPreMix
    LinearAttention LinearAttentionGate MRotaryEmbedding MoEGroupRouter NGramHashMapping ScaledSiLU
    VarlenCausalConvWithState VarlenNGramHashMapping
        """
    )
)
"""Of ONNX Runtime's own operators, those that came after 1.19.2."""
